//! What is published: which files a package has, what it depends on, which Rust it needs, and where the links of its pages lead.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Files of both packages that are neither code nor written by cargo.
const OF_EACH: [&str; 4] = ["CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "README.md"];

/// Pages of `docs/` that an embedder reads.
const PAGES: [&str; 8] = [
    "compatibility.md",
    "derive.md",
    "embedding.md",
    "errors.md",
    "inspect.md",
    "live-migration.md",
    "wire-format-stream.md",
    "wire-format.md",
];

#[test]
fn a_package_has_the_files_that_its_readers_need_and_no_others() {
    let pages = PAGES.map(|page| format!("docs/{page}"));
    let examples = [
        "bus.rs",
        "compatibility/main.rs",
        "compatibility/release-1.json",
        "live_migration.rs",
        "timer.rs",
        "virtio.rs",
    ];
    let examples = examples.map(|file| format!("examples/{file}"));
    for (package, more) in [("vmstate", [&pages[..], &examples].concat()), ("vmstate-derive", Vec::new())] {
        let expected: BTreeSet<String> = OF_EACH.map(str::to_owned).into_iter().chain(more).collect();
        let listed = cargo(&["package", "--list", "--allow-dirty", "--offline", "-p", package]);
        let written_by_cargo = [".cargo_vcs_info.json", "Cargo.lock", "Cargo.toml", "Cargo.toml.orig"];
        let listed = listed.lines().filter(|file| !file.starts_with("src/") && !written_by_cargo.contains(file));
        assert_eq!(listed.map(str::to_owned).collect::<BTreeSet<_>>(), expected, "{package}");
    }
}

/// What [`OF_EACH`] and [`PAGES`] link to is the workspace's own file, not a copy that ages.
#[test]
fn licences_and_pages_are_links_to_the_one_text() {
    for package in ["vmstate", "vmstate-derive"] {
        for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
            let there = fs::canonicalize(workspace().join(package).join(licence)).unwrap();
            assert_eq!(there, fs::canonicalize(workspace().join(licence)).unwrap());
        }
    }
    let there = fs::canonicalize(workspace().join("vmstate/docs")).unwrap();
    assert_eq!(there, fs::canonicalize(workspace().join("docs")).unwrap());
}

/// rustdoc does not rewrite links to files. So a page names the file in a definition at its end, `[derive.md]: derive.md`,
/// and `vmstate/src/lib.rs` has one of the same label that leads to the module, in front of the page: the first counts.
#[test]
fn links_of_published_pages_lead_somewhere_in_the_repository_and_in_rustdoc() {
    let library = read("vmstate/src/lib.rs");
    let mut wrong = Vec::new();
    for page in PAGES {
        let module = page.trim_end_matches(".md").replace('-', "_");
        if !library.contains(&format!("page!({module}, \"{page}\");")) {
            wrong.push(format!("vmstate/src/lib.rs: no page!({module}, \"{page}\")"));
        }
        let text = read(&format!("docs/{page}"));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
            if !target.starts_with('#') && !target.contains("://") {
                wrong.push(format!("docs/{page}: ({target}) is a dead link in rustdoc: write [text][{target}]"));
            }
        }
        let defined = text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
        for (label, target) in defined {
            let file = target.split('#').next().unwrap_or_default();
            if label != target || !workspace().join("docs").join(file).is_file() {
                wrong.push(format!("docs/{page}: [{label}] leads to {target}, which is no page, or not that one"));
            }
            if !library.contains(&format!("#[doc = \"[{label}]: crate::guide")) {
                wrong.push(format!("vmstate/src/lib.rs: the macro `page` does not define [{label}]"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn each_dependency_is_used() {
    let metadata = metadata();
    let mut unused = Vec::new();
    for package in metadata["packages"].as_array().unwrap().iter().filter(|package| package["source"].is_null()) {
        let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned();
        let code: String = sources(&folder).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["rename"].as_str().or(dependency["name"].as_str()).unwrap().replace('-', "_");
            // By a path or `use`; a codec of serde's by its name in quotes.
            let names = [format!("{name}::"), format!("use {name}"), format!("[{name}("), format!("\"{name}\"")];
            if !names.iter().any(|name| code.contains(name)) {
                unused.push(format!("{}: {name}", package["name"]));
            }
        }
    }
    assert!(unused.is_empty(), "never named in the code of their package: {unused:?}");
}

/// The lab depends on minivmm: its roles mount, power off and run programs, and none of that belongs into the product.
#[test]
fn the_product_does_not_depend_on_the_lab() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let depends = |on: &str, name: &str, kind: Option<&str>| {
        let package = packages.iter().find(|package| package["name"] == name).unwrap();
        let mut all = package["dependencies"].as_array().unwrap().iter();
        all.any(|dependency| dependency["name"] == on && dependency["kind"].as_str() == kind)
    };
    for product in ["vmstate", "vmstate-derive", "minivmm"] {
        for lab in ["vmstate-lab", "vmstate-demo", "vmstate-bench"] {
            assert!(!depends(lab, product, None), "{product} depends on {lab}");
        }
    }
    assert!(depends("minivmm", "vmstate-demo", None), "the demo does not link minivmm");
}

/// Whoever uses the declared Rust can build the library: clippy's `incompatible_msrv` looks at our own code, this at the
/// rest. What says nothing is not known to need more.
#[test]
fn no_dependency_of_the_library_needs_a_newer_rust_than_is_declared() {
    let metadata = metadata();
    let packages: HashMap<&str, &Value> =
        metadata["packages"].as_array().unwrap().iter().map(|one| (one["id"].as_str().unwrap(), one)).collect();
    let nodes: HashMap<&str, &Value> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|one| (one["id"].as_str().unwrap(), one)).collect();
    let library = packages.values().find(|package| package["name"] == "vmstate").unwrap();
    let declared = version(library["rust_version"].as_str().unwrap());
    let (mut seen, mut next) = (BTreeSet::new(), vec![library["id"].as_str().unwrap()]);
    while let Some(id) = next.pop() {
        if !seen.insert(id) {
            continue;
        }
        let needs = packages[id]["rust_version"].as_str().map_or((0, 0), version);
        assert!(needs <= declared, "{id} needs Rust {needs:?}, declared is {declared:?}");
        let below = nodes[id]["deps"].as_array().unwrap().iter();
        let normal = below.filter(|dep| dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev"));
        next.extend(normal.map(|dep| dep["pkg"].as_str().unwrap()));
    }
    assert!(seen.len() > 20, "the walk saw {} packages", seen.len());
}

fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap_or(0))
}

/// Of this platform: cargo has not fetched what only others need.
fn metadata() -> Value {
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let rustc = String::from_utf8(rustc.stdout).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let platform = ["metadata", "--filter-platform", host];
    let rest = ["--format-version=1", "--offline", "--locked", "--all-features"];
    serde_json::from_str(&cargo(&[&platform[..], &rest].concat())).unwrap()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(workspace()).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let listed = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Rust files of a package; not those of the packages in its folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names(folder) {
        let path = folder.join(name);
        if path.is_dir() && !path.is_symlink() && !path.join("Cargo.toml").exists() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found
}

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(file: &str) -> String {
    fs::read_to_string(workspace().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}
