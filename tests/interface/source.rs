//! Parses a crate's source into modules of items, and finds the items that can be named from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::{Attribute, Item, ItemImpl, Type, UseTree, Visibility};

use crate::render;

/// A module's path, without the crate's name.
pub(crate) type Module = Vec<String>;

/// An item, by its module and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) module: Module,
    pub(crate) name: String,
}

/// The target of a path.
pub(crate) enum Found {
    Item(Id),
    Module(Module),
}

pub(crate) struct Source {
    modules: BTreeMap<Module, Vec<Item>>,
    /// The features that a module requires.
    features: BTreeMap<Module, BTreeSet<String>>,
}

impl Source {
    pub(crate) fn read(folder: &Path) -> Self {
        Self::of(|file| fs::read_to_string(folder.join(file)).ok())
    }

    /// Parses the text of each file, given by its path below `src`.
    pub(crate) fn of(text: impl Fn(&str) -> Option<String>) -> Self {
        let mut source = Self { modules: BTreeMap::new(), features: BTreeMap::new() };
        let root = syn::parse_file(&text("lib.rs").expect("lib.rs")).expect("Rust").items;
        source.add(Vec::new(), root, BTreeSet::new(), &text);
        source
    }

    fn add(
        &mut self,
        module: Module,
        items: Vec<Item>,
        features: BTreeSet<String>,
        text: &impl Fn(&str) -> Option<String>,
    ) {
        for item in &items {
            let Item::Mod(child) = item else { continue };
            if render::cfg(&child.attrs).is_some_and(|cfg| cfg.contains("test") || cfg.contains("doc")) {
                continue;
            }
            let path = [&module[..], &[child.ident.to_string()]].concat();
            let inside = match &child.content {
                Some((_, items)) => items.clone(),
                None => {
                    let file = path.join("/");
                    let text = text(&format!("{file}.rs")).or_else(|| text(&format!("{file}/mod.rs")));
                    syn::parse_file(&text.unwrap_or_else(|| panic!("no file of {file}"))).expect("Rust").items
                }
            };
            let features = features.iter().cloned().chain(render::features(&child.attrs)).collect();
            self.add(path, inside, features, text);
        }
        self.features.insert(module.clone(), features);
        self.modules.insert(module, items);
    }

    pub(crate) fn item(&self, id: &Id) -> &Item {
        let items = self.modules[&id.module].iter();
        items.into_iter().find(|item| name(item).as_ref() == Some(&id.name)).expect("an id is of an item")
    }

    /// The features that an item requires.
    pub(crate) fn features(&self, id: &Id) -> BTreeSet<String> {
        let of_module = self.features[&id.module].iter().cloned();
        of_module.chain(render::features(attributes(self.item(id)))).collect()
    }

    /// Each item that can be named from outside, with its paths, the shortest first.
    pub(crate) fn public(&self) -> BTreeMap<Id, Vec<String>> {
        let mut public: BTreeMap<Id, Vec<String>> = BTreeMap::new();
        self.visit(&Vec::new(), "vmstate", &mut public);
        // `#[macro_export]` puts a macro at the root, whatever its module.
        for (module, items) in &self.modules {
            for item in items.iter().filter(|item| is_exported_macro(item)) {
                let name = name(item).expect("a macro has a name");
                public
                    .entry(Id { module: module.clone(), name: name.clone() })
                    .or_default()
                    .push(format!("vmstate::{name}"));
            }
        }
        for paths in public.values_mut() {
            paths.sort_by_key(|path| (path.matches("::").count(), path.clone()));
            paths.dedup();
        }
        public
    }

    fn visit(&self, module: &Module, path: &str, public: &mut BTreeMap<Id, Vec<String>>) {
        for item in &self.modules[module] {
            if !is_public(item) || render::is_hidden(attributes(item)) {
                continue;
            }
            match item {
                Item::Use(item) => {
                    for (target, name) in leaves(&item.tree) {
                        match self.find(module, &target) {
                            Some(Found::Module(inside)) if name == "*" => self.visit(&inside, path, public),
                            Some(Found::Module(inside)) => self.visit(&inside, &format!("{path}::{name}"), public),
                            Some(Found::Item(id)) => public.entry(id).or_default().push(format!("{path}::{name}")),
                            // A re-export from another crate: the derive.
                            None => {}
                        }
                    }
                }
                Item::Mod(child) => {
                    let inside = [&module[..], &[child.ident.to_string()]].concat();
                    if self.modules.contains_key(&inside) {
                        self.visit(&inside, &format!("{path}::{}", child.ident), public);
                    }
                }
                item => {
                    let Some(name) = name(item) else { continue };
                    public
                        .entry(Id { module: module.clone(), name: name.clone() })
                        .or_default()
                        .push(format!("{path}::{name}"));
                }
            }
        }
    }

    /// The names in an item's module for things of another crate: `Value`, or the crate itself.
    pub(crate) fn names_of(&self, krate: &str, id: &Id) -> Vec<String> {
        let uses = self.modules[&id.module].iter();
        let uses = uses.filter_map(|item| if let Item::Use(item) = item { Some(item) } else { None });
        let leaves = uses.flat_map(|item| leaves(&item.tree));
        let named = leaves.filter(|(path, _)| path.first().is_some_and(|first| first == krate)).map(|(_, name)| name);
        named.chain([krate.to_owned()]).collect()
    }

    /// The target of `path` as written in `module`; `None` outside of the crate.
    pub(crate) fn find(&self, module: &[String], path: &[String]) -> Option<Found> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => return self.find_in(&[], rest),
            "self" => return self.find_in(module, rest),
            "super" if rest.first().is_some_and(|next| next == "super") => {
                return self.find(module.split_last()?.1, rest);
            }
            "super" => return self.find_in(module.split_last()?.1, rest),
            _ => {}
        }
        self.find_in(module, path)
    }

    fn find_in(&self, module: &[String], path: &[String]) -> Option<Found> {
        let Some((first, rest)) = path.split_first() else { return Some(Found::Module(module.to_vec())) };
        let child = [module, std::slice::from_ref(first)].concat();
        if self.modules.contains_key(&child) {
            return self.find_in(&child, rest);
        }
        let items = self.modules.get(module)?;
        if items.iter().any(|item| name(item).as_ref() == Some(first)) {
            return Some(Found::Item(Id { module: module.to_vec(), name: first.clone() }));
        }
        let uses = items.iter().filter_map(|item| if let Item::Use(item) = item { Some(item) } else { None });
        for (target, name) in uses.flat_map(|item| leaves(&item.tree)) {
            // A `use` of the same name, as `pub use vmstate_derive::VmState`, leads out of the crate.
            if name == *first && target != [first.clone()] {
                match self.find(module, &target) {
                    Some(Found::Module(inside)) => return self.find_in(&inside, rest),
                    Some(found) => return Some(found),
                    None => {}
                }
            }
        }
        None
    }

    /// The impls for an item, or the impls of a trait for types of other crates.
    pub(crate) fn implemented(&self, id: &Id) -> Vec<String> {
        let mut lines = BTreeSet::new();
        for (module, items) in &self.modules {
            let impls = items.iter().filter_map(|item| if let Item::Impl(item) = item { Some(item) } else { None });
            for item in impls.filter(|item| !render::cfg(&item.attrs).is_some_and(|cfg| cfg.contains("test"))) {
                let owner = self.owner(module, &item.self_ty);
                match &item.trait_ {
                    None if owner.as_ref() == Some(id) => lines.extend(render::methods(item)),
                    Some(_) if owner.as_ref() == Some(id) => {
                        lines.insert(render::header(item));
                    }
                    Some(_) if owner.is_none() && self.of_trait(module, item).as_ref() == Some(id) => {
                        lines.insert(render::header(item));
                    }
                    _ => {}
                }
            }
        }
        // A type's own methods come first: `impl` sorts before `pub`.
        let (impls, own): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.starts_with("impl"));
        own.into_iter().chain(impls).collect()
    }

    fn owner(&self, module: &[String], of: &Type) -> Option<Id> {
        let Type::Path(of) = of else { return None };
        self.lookup(module, &of.path)
    }

    fn of_trait(&self, module: &[String], item: &ItemImpl) -> Option<Id> {
        self.lookup(module, &item.trait_.as_ref()?.0)
    }

    fn lookup(&self, module: &[String], path: &syn::Path) -> Option<Id> {
        let path: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        match self.find(module, &path) {
            Some(Found::Item(id)) => Some(id),
            _ => None,
        }
    }
}

/// The name of an item that can be used elsewhere.
fn name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return None,
    };
    Some(ident.to_string())
}

fn is_public(item: &Item) -> bool {
    let vis = match item {
        Item::Const(item) => &item.vis,
        Item::Enum(item) => &item.vis,
        Item::Fn(item) => &item.vis,
        Item::Mod(item) => &item.vis,
        Item::Static(item) => &item.vis,
        Item::Struct(item) => &item.vis,
        Item::Trait(item) => &item.vis,
        Item::Type(item) => &item.vis,
        Item::Use(item) => &item.vis,
        _ => return false,
    };
    matches!(vis, Visibility::Public(_))
}

fn is_exported_macro(item: &Item) -> bool {
    matches!(item, Item::Macro(item) if item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")))
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        _ => &[],
    }
}

/// Each path that a `use` imports, with its local name; `*` for everything in a module.
fn leaves(tree: &UseTree) -> Vec<(Vec<String>, String)> {
    let below = |name: String, leaves: Vec<(Vec<String>, String)>| -> Vec<_> {
        leaves.into_iter().map(|(path, alias)| ([vec![name.clone()], path].concat(), alias)).collect()
    };
    match tree {
        UseTree::Path(tree) => {
            let name = tree.ident.to_string();
            let leaves = leaves(&tree.tree);
            // `a::{self}` imports `a`.
            let named = leaves.into_iter().map(|(path, alias)| match path.as_slice() {
                [own] if own == "self" => (vec![], if alias == "self" { name.clone() } else { alias }),
                _ => (path, alias),
            });
            below(name.clone(), named.collect())
        }
        UseTree::Name(tree) => vec![(vec![tree.ident.to_string()], tree.ident.to_string())],
        UseTree::Rename(tree) => vec![(vec![tree.ident.to_string()], tree.rename.to_string())],
        UseTree::Glob(_) => vec![(vec![], "*".to_owned())],
        UseTree::Group(tree) => tree.items.iter().flat_map(leaves).collect(),
    }
}
