//! Methods of one type in several files must not circumvent the ranks: imports show no dependency between such files,
//! but method calls do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Offence, code_only, read, report, sources, words};

/// The type's own module, with its folder if it has one, is one part; each other file with methods of the type is
/// another. Of two parts only one may call the other.
#[test]
fn parts_of_a_type_call_each_other_one_way() {
    let mut offences = Vec::new();
    for name in ["vmstate", "minivmm"] {
        let is_test = |file: &Path| file.with_extension("").iter().any(|part| part == "tests");
        let files = sources(&format!("{name}/src")).into_iter().filter(|file| !is_test(file));
        offences.extend(mutual_calls(&files.map(|file| (file.clone(), read(&file))).collect()));
    }
    report(&offences);
}

/// Calls of `self`'s methods from one part of a type to another from which calls lead back.
fn mutual_calls(files: &BTreeMap<PathBuf, String>) -> Vec<Offence> {
    let mut types: BTreeMap<String, BTreeMap<&Path, Methods>> = BTreeMap::new();
    let mut modules: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for (file, text) in files {
        let code = code_only(text.split("#[cfg(test)]").next().unwrap_or_default());
        let words = words(&code);
        for (name, methods) in inherent_methods(&words) {
            types.entry(name).or_default().insert(file, methods);
        }
        let is_head = file.ends_with("mod.rs");
        let module = if is_head { file.parent().expect("a file in a folder").into() } else { file.with_extension("") };
        for pair in words.windows(2).filter(|pair| matches!(pair[0].1, "struct" | "enum")) {
            modules.entry(pair[1].1.to_owned()).or_default().insert(module.clone());
        }
    }
    let mut offences = Vec::new();
    for (name, methods) in &types {
        let own = |file: &&Path| {
            modules.get(name).and_then(|all| {
                all.iter().find(|module| file.starts_with(module) || file.with_extension("") == **module)
            })
        };
        let part = |file: &&Path| own(file).map_or_else(|| file.to_path_buf(), Clone::clone);
        // The first call from a file to a file of another part.
        let call = |from: &Path, to: &Path| {
            let (ours, theirs) = (&methods[from], &methods[to]);
            let is_there = |called: &String| !ours.defined.contains(called) && theirs.defined.contains(called);
            ours.called.iter().find(|(_, called)| is_there(called)).filter(|_| part(&from) != part(&to)).cloned()
        };
        let mut ways: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
        for (from, to) in pairs(methods).filter(|(from, to)| call(from, to).is_some()) {
            ways.entry(part(&from)).or_default().insert(part(&to));
        }
        for (from, to) in pairs(methods) {
            if let Some((line, called)) = call(from, to)
                && reaches(&ways, &part(&to), &part(&from))
            {
                let what =
                    format!("calls `{name}::{called}` of {}, from which calls lead back here", part(&to).display());
                offences.push(Offence { file: from.into(), line, what });
            }
        }
    }
    offences
}

fn pairs<'a>(methods: &BTreeMap<&'a Path, Methods>) -> impl Iterator<Item = (&'a Path, &'a Path)> {
    methods.keys().flat_map(|&from| methods.keys().map(move |&to| (from, to)))
}

fn reaches(ways: &BTreeMap<PathBuf, BTreeSet<PathBuf>>, from: &PathBuf, to: &PathBuf) -> bool {
    let mut reached = vec![from];
    let mut next = 0;
    while let Some(at) = reached.get(next) {
        let new: Vec<_> = ways.get(*at).into_iter().flatten().filter(|part| !reached.contains(part)).collect();
        reached.extend(new);
        next += 1;
    }
    reached.contains(&to)
}

/// The methods of one type in a file, and the calls of `self`'s methods with their lines.
#[derive(Debug, Default)]
struct Methods {
    defined: Vec<String>,
    called: Vec<(usize, String)>,
}

/// For each type, the methods that its `impl` blocks without a trait define and call.
fn inherent_methods(words: &[(usize, &str)]) -> BTreeMap<String, Methods> {
    let mut found: BTreeMap<String, Methods> = BTreeMap::new();
    let mut index = 0;
    while index < words.len() {
        let is_item = words[index].1 == "impl" && (index == 0 || matches!(words[index - 1].1, "}" | ";" | "]"));
        index += 1;
        if !is_item {
            continue;
        }
        let head: Vec<&str> = words[index..].iter().map(|&(_, word)| word).take_while(|&word| word != "{").collect();
        index += head.len() + 1;
        let mut depth = 0;
        let mut name = None;
        for word in head.iter().take_while(|&&word| word != "where") {
            match *word {
                "<" => depth += 1,
                ">" => depth -= 1,
                word if depth == 0 && word.starts_with(char::is_alphabetic) => name = Some(word),
                _ => {}
            }
        }
        let Some(name) = name.filter(|_| !head.contains(&"for")) else { continue };
        let methods = found.entry(name.to_owned()).or_default();
        let mut depth = 1;
        while depth > 0 && index < words.len() {
            match (words[index].1, words.get(index + 1), words.get(index + 2)) {
                ("{", ..) => depth += 1,
                ("}", ..) => depth -= 1,
                ("fn", Some((_, name)), _) => methods.defined.push((*name).to_owned()),
                ("self", Some((_, ".")), Some((line, called))) | ("Self", Some((_, "::")), Some((line, called)))
                    if words.get(index + 3).is_some_and(|&(_, word)| word == "(") =>
                {
                    methods.called.push((*line, (*called).to_owned()));
                }
                _ => {}
            }
            index += 1;
        }
    }
    found
}

#[test]
fn calls_back_and_forth_are_found() {
    let of = |texts: &[(&str, &str)]| -> Vec<String> {
        let files = texts.iter().map(|(file, text)| (PathBuf::from(file), (*text).to_owned())).collect();
        mutual_calls(&files).iter().map(ToString::to_string).collect()
    };
    let up = "struct T<X>(X);\nimpl<X: Into<u8>> T<X> {\n fn a(&self) { self.b() }\n fn own(&self) {} }";
    let down = "impl<X> T<X> where X: Copy { fn b(&self) { self.own_too(); Self::c(); } fn own_too(&self) {} }";
    let back = "impl T<u8> { fn c(&self) { self.a() } }";
    let of_trait = "impl Drop for T { fn c(&self) { self.a() } }";
    assert_eq!(of(&[("a/x.rs", up), ("a/y.rs", down), ("c/z.rs", of_trait)]), [""; 0]);
    let found = of(&[("a/x.rs", up), ("a/y.rs", down), ("c/z.rs", back)]);
    assert_eq!(found[0], "a/x.rs:3: calls `T::b` of a/y.rs, from which calls lead back here");
    assert_eq!(found.len(), 3, "{found:?}");
    // A module and its folder are one part.
    assert_eq!(of(&[("a/x.rs", up), ("a/x/y.rs", down), ("a/x/z.rs", back)]), [""; 0]);
    assert_eq!(of(&[("a/mod.rs", up), ("a/y.rs", down), ("a/z.rs", back)]), [""; 0]);
}
