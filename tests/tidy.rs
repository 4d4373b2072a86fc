//! The house rules that the compiler does not know: which room may name which, how long a function
//! and a file may be, what things may be called, and what may lie at the top level.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test reads files and may stop"
)]

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Spacing, Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Every room and the rooms that it may name.
const ARROWS: [(&str, &[&str]); 10] = [
    ("policy", &[]),
    ("config", &["policy", "store"]),
    ("telemetry", &["policy"]),
    ("store", &["policy"]),
    ("gate", &["policy", "store"]),
    ("edge", &["gate", "policy", "telemetry", "store", "config"]),
    ("app", &["policy", "config", "telemetry", "store", "gate", "edge", "cli"]),
    ("cli", &["policy", "config", "telemetry", "store", "gate", "edge", "app"]),
    ("main", &["cli"]),
    ("lib", &[]),
];
const TOP_LEVEL: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    "src",
    "conf",
    "tests",
    "deploy",
    "benches",
    "README.md",
    "LICENSE",
];
/// What Cargo builds into; `.gitignore` has it.
const BUILD_OUTPUT: &str = "target";
const GRAB_BAGS: [&str; 6] = ["util", "utils", "common", "helper", "helpers", "misc"];
const FUNCTION_LINES: usize = 70;
const FILE_LINES: usize = 500;

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut faults = top_level_faults(entries(root).iter().map(|path| file_name(path)));
    for path in rust_files(&root.join("src")) {
        let name = relative(root, &path);
        let source = fs::read_to_string(&path).expect("a source file is UTF-8");
        faults.extend(source_faults(&name, &source));
    }
    for directory in ["tests", "benches"] {
        for path in rust_files(&root.join(directory)) {
            faults.extend(name_faults(&relative(root, &path)));
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn top_level_faults<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    names
        .filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(name) && *name != BUILD_OUTPUT)
        .map(|name| format!("{name}: the top level is fixed (tests/tidy.rs)"))
        .collect()
}

/// Everything wrong with one file of `src`. `name` is its path from the repository's root.
fn source_faults(name: &str, source: &str) -> Vec<String> {
    let mut faults = name_faults(name);
    let module = module_path(name);
    let room = room_of(name);
    let Some((_, allowed)) = ARROWS.iter().find(|(listed, _)| *listed == room) else {
        faults.push(format!("{name}: `{room}` is no room (tests/tidy.rs)"));
        return faults;
    };
    let file = match syn::parse_file(source) {
        Ok(file) => file,
        Err(error) => {
            faults.push(format!("{name}: {error}"));
            return faults;
        }
    };
    let mut reader = Reader { name, room, allowed, module, tests: 0, test_lines: 0, faults };
    reader.visit_file(&file);
    let lines = source.lines().count() - reader.test_lines;
    let mut faults = reader.faults;
    if lines > FILE_LINES {
        faults.push(format!("{name}: {lines} lines, at most {FILE_LINES} are allowed"));
    }
    faults
}

fn name_faults(name: &str) -> Vec<String> {
    let is_grab_bag = |part: &str| part.split('_').any(|word| GRAB_BAGS.contains(&word));
    name.trim_end_matches(".rs")
        .split('/')
        .filter(|part| is_grab_bag(part))
        .map(|part| format!("{name}: `{part}` says nothing about what is in it"))
        .collect()
}

/// `src/policy/proof.rs` → `policy`; `src/gate.rs` → `gate`.
fn room_of(name: &str) -> String {
    let inside = name.trim_start_matches("src/");
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs").to_owned()
}

/// `src/policy/proof.rs` → `[policy, proof]`; `src/policy/mod.rs` → `[policy]`; `src/lib.rs` → `[]`.
fn module_path(name: &str) -> Vec<String> {
    let inside = name.trim_start_matches("src/").trim_end_matches(".rs");
    let mut parts: Vec<String> = inside.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod" || inside == "lib") {
        parts.pop();
    }
    parts
}

struct Reader<'a> {
    name: &'a str,
    room: String,
    allowed: &'static [&'static str],
    /// The module being read, inline ones included.
    module: Vec<String>,
    /// How many `#[cfg(test)]` items we are inside of.
    tests: usize,
    test_lines: usize,
    faults: Vec<String>,
}

impl Reader<'_> {
    fn fault(&mut self, span: Span, text: &str) {
        self.faults.push(format!("{}:{}: {text}", self.name, span.start().line));
    }

    /// A path's leading segments → the room that it names, if it names one of ours.
    fn arrow(&mut self, segments: &[String], span: Span) {
        let from_root: Vec<&str> = match segments.first().map(String::as_str) {
            // In `main.rs` `crate` is the program, not the library.
            Some("crate") if self.room == "main" => return,
            Some("crate" | "holdfast") => segments.iter().skip(1).map(String::as_str).collect(),
            Some("self" | "super") => {
                let up = segments.iter().filter(|segment| *segment == "super").count();
                let depth = self.module.len().saturating_sub(up);
                let down = segments.iter().filter(|part| *part != "super" && *part != "self");
                self.module[..depth].iter().chain(down).map(String::as_str).collect()
            }
            _ => return,
        };
        let Some(room) = from_root.first().map(|room| (*room).to_owned()) else {
            self.fault(span, "names the whole crate: name the room");
            return;
        };
        if room != self.room && self.room != "lib" && !self.allowed.contains(&room.as_str()) {
            let text = format!("`{}` may not name `{room}`", self.room);
            self.fault(span, &text);
        }
    }

    fn use_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |ident: &syn::Ident| {
            let mut path = before.to_vec();
            path.push(ident.to_string());
            path
        };
        match tree {
            syn::UseTree::Path(path) => self.use_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Group(group) => {
                for item in &group.items {
                    self.use_tree(before, item);
                }
            }
            syn::UseTree::Name(name) => self.used(&with(&name.ident), name.span()),
            syn::UseTree::Rename(rename) => self.used(&with(&rename.ident), rename.span()),
            syn::UseTree::Glob(glob) => self.used(before, glob.span()),
        }
    }

    fn used(&mut self, path: &[String], span: Span) {
        let named: Vec<String> = match path.split_last() {
            Some((last, rest)) if last == "self" && !rest.is_empty() => rest.to_vec(),
            _ => path.to_vec(),
        };
        self.arrow(&named, span);
    }

    /// Paths in a macro's arguments, which are tokens to the parser.
    fn tokens(&mut self, tokens: TokenStream) {
        let trees: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < trees.len() {
            match &trees[at] {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(first)
                    if ["crate", "holdfast", "super"].contains(&first.to_string().as_str()) =>
                {
                    let mut path = vec![first.to_string()];
                    while is_path_separator(trees.get(at + 1), trees.get(at + 2)) {
                        match trees.get(at + 3) {
                            Some(TokenTree::Ident(next)) => path.push(next.to_string()),
                            Some(TokenTree::Group(group))
                                if group.delimiter() == Delimiter::Brace =>
                            {
                                self.fault(group.span(), "a `use` group in a macro: write paths");
                                break;
                            }
                            _ => break,
                        }
                        at += 3;
                    }
                    if path.len() > 1 {
                        self.arrow(&path, first.span());
                    }
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            at += 1;
        }
    }

    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        if self.tests > 0 {
            return;
        }
        let lines = block.span().end().line + 1 - signature.span().start().line;
        if lines > FUNCTION_LINES {
            let text = format!(
                "`{}` has {lines} lines, at most {FUNCTION_LINES} are allowed",
                signature.ident
            );
            self.fault(signature.span(), &text);
        }
    }
}

fn is_path_separator(first: Option<&TokenTree>, second: Option<&TokenTree>) -> bool {
    matches!((first, second), (Some(TokenTree::Punct(first)), Some(TokenTree::Punct(second)))
        if first.as_char() == ':' && first.spacing() == Spacing::Joint && second.as_char() == ':')
}

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|argument| argument.is_ident("test"))
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "syn adds kinds of items as Rust does")]
fn attributes_of(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let test_only = is_test_only(attributes_of(item));
        if test_only && self.tests == 0 {
            let span = item.span();
            self.test_lines += span.end().line + 1 - span.start().line;
        }
        self.tests += usize::from(test_only);
        visit::visit_item(self, item);
        self.tests -= usize::from(test_only);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let name = item.ident.to_string();
        for fault in name_faults(&name) {
            self.fault(item.ident.span(), &fault);
        }
        if item.attrs.iter().any(|attribute| attribute.path().is_ident("path")) {
            self.fault(item.ident.span(), "`#[path]`: a module lies where its name says");
        }
        self.module.push(name);
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&[], &item.tree);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.arrow(&segments, path.span());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("a readable directory").path())
        .collect();
    paths.sort();
    paths
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in entries(directory) {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or("a name outside UTF-8")
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
}

/// The rules' own tests: `expect` is a piece of the one fault that must be found, or nothing.
#[track_caller]
fn check(name: &str, source: &str, expect: Option<&str>) {
    let faults = source_faults(name, source);
    match expect {
        None => assert!(faults.is_empty(), "{name}: {faults:?}"),
        Some(text) => {
            assert!(
                faults.len() == 1 && faults[0].contains(text),
                "{name}: expected «{text}», found {faults:?}"
            );
        }
    }
}

#[test]
fn arrows_are_read_wherever_a_path_can_stand() {
    let no_edge = Some("may not name `edge`");
    for (name, source, expect) in [
        ("src/gate.rs", "use crate::policy::denial::Denial;", None),
        ("src/gate.rs", "use crate::store::replay::Log;", None),
        ("src/edge/view.rs", "use super::headers::x; use crate::config::Listener;", None),
        ("src/cli/run.rs", "fn f() { crate::app::serve() }", None),
        ("src/main.rs", "fn main() { holdfast::cli::main() }", None),
        ("src/gate.rs", "use crate::edge::view::View;", no_edge),
        ("src/gate.rs", "use holdfast::edge::view::View;", no_edge),
        ("src/gate.rs", "use {crate::{policy::time, edge as e}};", no_edge),
        ("src/gate.rs", "use super::edge::view;", no_edge),
        ("src/gate.rs", "fn f() { crate::edge::run() }", no_edge),
        ("src/gate.rs", "fn f(x: Vec<crate::edge::View>) {}", no_edge),
        ("src/gate.rs", "fn f() { assert!(crate::edge::ok(), \"\") }", no_edge),
        ("src/gate.rs", "macro_rules! m { () => { $crate::edge::run() } }", no_edge),
        ("src/gate.rs", "impl crate::edge::Trait for u8 {}", no_edge),
        ("src/gate.rs", "mod inner { use super::super::edge::X; }", no_edge),
        ("src/store/replay.rs", "use super::super::edge::X;", no_edge),
        ("src/gate.rs", "#[cfg(test)] mod tests { use crate::edge::X; }", no_edge),
        ("src/config/mod.rs", "use crate::gate::Gate;", Some("may not name `gate`")),
        ("src/policy/proof.rs", "use crate::config::X;", Some("may not name `config`")),
        ("src/main.rs", "use holdfast::app;", Some("may not name `app`")),
        ("src/gate.rs", "use crate::*;", Some("the whole crate")),
        ("src/gate.rs", "use super::*;", Some("the whole crate")),
        ("src/gate.rs", "use crate::{self as me};", Some("the whole crate")),
    ] {
        check(name, source, expect);
    }
}

#[test]
fn rooms_names_and_places() {
    check("src/lobby/mod.rs", "", Some("`lobby` is no room"));
    check("src/lobby.rs", "", Some("`lobby` is no room"));
    check("src/edge/utils.rs", "", Some("`utils` says nothing"));
    check("src/edge/http_helper.rs", "", Some("`http_helper` says nothing"));
    check("src/edge/view.rs", "mod common {}", Some("`common` says nothing"));
    check("src/edge/view.rs", "#[path = \"x.rs\"] mod view;", Some("`#[path]`"));
    check("src/edge/view.rs", "fn f( {}", Some("cannot parse"));
    let names = ["src", ".ci", "target", "notes.txt"];
    let faults = top_level_faults(names.into_iter());
    assert_eq!(faults, ["notes.txt: the top level is fixed (tests/tidy.rs)"]);
}

#[test]
fn sizes() {
    let function = |body: usize| format!("fn f() {{\n{}}}\n", "\n".repeat(body));
    let too_long = Some("`f` has 71 lines");
    check("src/gate.rs", &function(FUNCTION_LINES - 2), None);
    check("src/gate.rs", &function(FUNCTION_LINES - 1), too_long);
    let method = |text: &str| format!("impl X {{\n{text}}}\n");
    check("src/gate.rs", &method(&function(FUNCTION_LINES - 1)), too_long);
    let default = format!("trait T {{\n{}}}\n", function(FUNCTION_LINES - 1));
    check("src/gate.rs", &default, too_long);
    let tests = |text: &str| format!("#[cfg(test)]\nmod tests {{\n{text}}}\n");
    check("src/gate.rs", &tests(&function(FILE_LINES + 1)), None);
    let not_tests = format!("#[cfg(unix)]\nmod m {{\n{}}}\n", function(FUNCTION_LINES - 1));
    check("src/gate.rs", &not_tests, too_long);
    let full = "//\n".repeat(FILE_LINES);
    check("src/gate.rs", &full, None);
    check("src/gate.rs", &(full.clone() + &tests("//\n")), None);
    check("src/gate.rs", &(full + "//\n"), Some("501 lines"));
}
