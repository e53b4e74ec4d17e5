//! The modules of each crate use each other as ARCHITECTURE.md ("Layers") says: each only those of lower lines, and no files
//! in a circle; a folder's mod.rs is its face, and that it names its own files counts for none. Read from the sources' paths (`crate::`, `super::`, `self::`), in `use` lines and elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates, as ARCHITECTURE.md names them; their directories have the same names.
const CRATES: [&str; 18] = [
    "cli",
    "shim",
    "engine",
    "host",
    "rendezvous",
    "shmring",
    "steering",
    "zstack/zstackd",
    "zstack/tool",
    "zstack/control",
    "zstack/sim",
    "zstack/dpdk",
    "zstack/port",
    "zstack/engine",
    "zstack/wire",
    "chain/pool",
    "chain/nf",
    "chain/functions",
];

/// A module's path in its crate; the crate's root has none.
type Module = Vec<String>;

/// The modules of a crate in layers, as the text of ARCHITECTURE.md has them: from the top.
type Layers = Vec<Vec<String>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The lines of the text that list modules: two spaces, their names (a folder's with a slash), two spaces or more, what they
/// are. A crate's line begins with its name and a colon.
fn layers(text: &str) -> BTreeMap<String, Layers> {
    let listed = text.split("## Layers").nth(1).expect("a section on layers");
    let listed = listed.split("```text").nth(1).expect("a list of layers").split("```").next().unwrap_or("");
    let (mut found, mut name) = (BTreeMap::<String, Layers>::new(), String::new());
    for line in listed.lines() {
        match line.strip_prefix("  ") {
            Some(row) => {
                let names = row.split("  ").next().unwrap_or("").split_whitespace();
                found
                    .entry(name.clone())
                    .or_default()
                    .push(names.map(|n| n.trim_end_matches('/').to_owned()).collect());
            }
            None => name = line.split(':').next().unwrap_or("").to_owned(),
        }
    }
    found
}

/// The source without comments, strings and modules of tests.
fn code(source: &str) -> String {
    let mut out = String::new();
    let mut lines = source.lines().peekable();
    while let Some(line) = lines.next() {
        let attribute = line.trim_start();
        let test = attribute.starts_with("#[cfg(test)") || attribute.starts_with("#[cfg(all(test");
        if test && lines.peek().is_some_and(|next| next.trim_start().starts_with("mod ") && next.ends_with('{')) {
            // To the brace that stands as far in as the module does (rustfmt).
            let end = format!("{}}}", &line[..line.len() - attribute.len()]);
            lines.by_ref().find(|l| *l == end);
            continue;
        }
        let bare = line.split("//").next().unwrap_or("");
        // A string's inside, between every other quotation mark.
        out.extend(bare.split('"').step_by(2));
        out.push('\n');
    }
    out
}

/// The paths that a `use` names: `a::{b, c::{d, e}}` is `a::b`, `a::c::d`, `a::c::e`.
fn expand(tree: &str) -> Vec<String> {
    let Some((before, inside)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap_or("").to_owned()];
    };
    let inside = inside.rsplit_once('}').map_or(inside, |(inside, _)| inside);
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in inside.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        match parts.last_mut() {
            Some(last) if c != ',' || depth > 0 => last.push(c),
            _ => parts.push(String::new()),
        }
    }
    let parts = parts.iter().filter(|p| !p.trim().is_empty());
    parts.flat_map(|p| expand(p)).map(|p| format!("{}{}", before.trim(), p.trim())).collect()
}

/// What may be part of a path.
fn in_path(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == ':'
}

/// The paths from `crate`, `super` or `self` that the code of `module` names, from the crate's root on.
fn named(module: &Module, code: &str) -> BTreeSet<Module> {
    let mut paths = Vec::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let bare =
            ["pub(crate) ", "pub(super) ", "pub "].iter().fold(line.trim_start(), |l, p| l.trim_start_matches(p));
        match bare.strip_prefix("use ") {
            Some(tree) => {
                let mut tree = tree.to_owned();
                while !tree.trim_end().ends_with(';') {
                    let Some(more) = lines.next() else { break };
                    tree.push_str(more.trim());
                }
                paths.extend(expand(tree.trim_end_matches(';')));
            }
            None => paths.extend(line.split(|c| !in_path(c)).map(str::to_owned)),
        }
    }
    paths.iter().filter_map(|p| resolve(module, p)).collect()
}

/// A path that a module names, from the crate's root on; `None`: it leads to another crate, or is none.
fn resolve(module: &Module, path: &str) -> Option<Module> {
    let mut words = path.split("::").map(str::trim).filter(|w| !w.is_empty()).peekable();
    let mut at = match *words.peek()? {
        "crate" => Module::new(),
        "super" | "self" => module.clone(),
        _ => return None,
    };
    while let Some(word) = words.next_if(|w| ["crate", "self", "super"].contains(w)) {
        if word == "super" {
            at.pop();
        }
    }
    at.extend(words.filter(|w| *w != "self").map(str::to_owned));
    Some(at)
}

/// The modules that a file declares to be in files of their own, without those of tests.
fn declared(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut test = false;
    for line in text.lines() {
        let bare = line.trim_start_matches("pub(super) ").trim_start_matches("pub ");
        if let Some(name) = bare.strip_prefix("mod ").and_then(|m| m.strip_suffix(';'))
            && !test
        {
            found.insert(name.to_owned());
        }
        let attribute = line.starts_with("#[");
        test = attribute && (test || line.starts_with("#[cfg(test") || line.starts_with("#[cfg(all(test"));
    }
    found
}

/// The sources of a module and of those inside it, each with its module.
fn sources(at: &Path, module: Module, found: &mut BTreeMap<Module, String>) {
    let file = at.with_extension("rs");
    let file = if file.is_file() { file } else { at.join("mod.rs") };
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    for name in declared(&text) {
        let mut inner = module.clone();
        inner.push(name.clone());
        sources(&at.join(&name), inner, found);
    }
    found.insert(module, code(&text));
}

/// Who uses whom among the files of a crate: the longest part of each path that is a file.
fn uses(files: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeMap<Module, String>> {
    let target = |path: &Module| (1..=path.len()).rev().map(|n| path[..n].to_vec()).find(|p| files.contains_key(p));
    let of = |(module, code): (&Module, &String)| {
        let named = named(module, code);
        let found = named.iter().filter_map(|p| Some((target(p)?, p.join("::")))).filter(|(to, _)| to != module);
        (module.clone(), found.collect())
    };
    files.iter().map(of).collect()
}

/// What is wrong with the files of a crate that is to be in these layers.
fn faults(layers: &Layers, files: &BTreeMap<Module, String>) -> Vec<String> {
    let mut faults = Vec::new();
    let floor = |name: &String| layers.iter().rev().position(|row| row.contains(name));
    let uses = uses(files);
    let tops: BTreeSet<_> = files.keys().map(|m| &m[0]).collect();
    for name in &tops {
        if layers.iter().flatten().filter(|n| n == name).count() != 1 {
            faults.push(format!("{name} stands in the layers not once"));
        }
    }
    for name in layers.iter().flatten().filter(|n| !tops.contains(n)) {
        faults.push(format!("{name} stands in the layers, and is no module"));
    }
    for (from, to) in &uses {
        for (to, path) in to.iter().filter(|(to, _)| to[0] != from[0]) {
            if let (Some(above), Some(below)) = (floor(&from[0]), floor(&to[0]))
                && below >= above
            {
                faults.push(format!("{} uses {path}: that is not in a lower layer", from.join("/")));
            }
        }
    }
    // What can be taken away because it uses nothing that is left: a circle remains.
    let mut left: BTreeSet<_> = uses.keys().collect();
    while let Some(free) = left.iter().find(|m| uses[**m].keys().all(|to| !left.contains(to))).copied() {
        left.remove(free);
    }
    if !left.is_empty() {
        let names: Vec<_> = left.iter().map(|m| m.join("/")).collect();
        faults.push(format!("a circle, with what leads to it: {}", names.join(", ")));
    }
    faults
}

/// The files of a crate.
fn files(name: &str) -> BTreeMap<Module, String> {
    let src = root().join(name).join("src");
    let mut found = BTreeMap::new();
    let root = ["lib.rs", "main.rs"].map(|f| src.join(f)).into_iter().find(|f| f.is_file()).expect("a root");
    for module in declared(&fs::read_to_string(root).expect("a root")) {
        sources(&src.join(&module), vec![module], &mut found);
    }
    assert!(found.len() > 2, "{name}: nothing was read");
    found
}

fn architecture() -> BTreeMap<String, Layers> {
    layers(&fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md"))
}

#[test]
fn modules_use_lower_layers_only() {
    let layers = architecture();
    let mut faults_of_all = Vec::new();
    for name in CRATES {
        let layers = layers.get(name).unwrap_or_else(|| panic!("{name} has no layers"));
        faults_of_all.extend(faults(layers, &files(name)).into_iter().map(|f| format!("{name}: {f}")));
    }
    assert!(faults_of_all.is_empty(), "\n{}", faults_of_all.join("\n"));
}

/// The paths that the code between `from` and the next line that is a closing brace names.
fn named_within(module: &Module, code: &str, from: &str) -> BTreeSet<Module> {
    let text = code.split(from).nth(1).unwrap_or_else(|| panic!("no {from}"));
    let text = text.split("\n}").next().unwrap_or("");
    // Names that the file has imported are written without `crate`.
    let words = text.split(|c| !in_path(c)).filter(|w| w.contains("::"));
    words.filter_map(|w| resolve(module, &format!("crate::{w}"))).collect()
}

#[test]
fn a_send_does_not_enter_the_receiving_module() {
    let files = files("engine");
    for (module, code) in files.iter().filter(|(m, _)| m[0] == "tx") {
        let entered: Vec<_> = named(module, code).into_iter().filter(|p| p[0] == "rx").collect();
        assert!(entered.is_empty(), "{module:?} uses {entered:?}");
    }
    let io = vec!["io".to_owned()];
    for call in ["Call for Send {", "Call for SendFile {", "Call for Receive {"] {
        let entered = named_within(&io, &files[&io], call).iter().any(|p| p[0] == "rx");
        assert_eq!(entered, call.contains("Receive"), "{call} rx");
    }
}

/// What a question about readiness may ask of the sending side: none of it moves a direction.
const QUESTIONS: [&str; 5] = ["writable", "want_space", "look", "look_due", "LOOK_EVERY_US"];

#[test]
fn a_question_about_readiness_does_not_run_the_senders_protocol() {
    let files = files("engine");
    let readiness = vec!["readiness".to_owned()];
    let code = &files[&readiness];
    let asked: BTreeSet<_> = code.split(|c| !in_path(c)).filter_map(|w| w.strip_prefix("tx::")).collect();
    assert!(!asked.is_empty(), "nothing is asked of the sending side any more");
    for name in &asked {
        assert!(QUESTIONS.contains(name), "readiness uses tx::{name}");
    }
    let others: Vec<_> = named(&readiness, code).into_iter().filter(|p| p[0] == "tx" && p.len() > 1).collect();
    assert!(others.iter().all(|p| QUESTIONS.contains(&p[1].as_str())), "readiness uses {others:?}");
}

fn house(files: &[(&str, &str)]) -> BTreeMap<Module, String> {
    files.iter().map(|(m, text)| (m.split('/').map(str::to_owned).collect(), code(text))).collect()
}

const TEXT: &str = "## Layers\n```text\nc: a crate\n  top/     above\n  mid one  between\n  low      below\n```\n";

#[test]
fn an_arrow_that_runs_up_is_found_wherever_it_is_written() {
    let layers = &layers(TEXT)["c"];
    let good = [
        ("top", "mod x;\nuse crate::{low, mid::{self, M}};"),
        ("top/x", "use super::super::one;"),
        ("mid", ""),
        ("one", ""),
        ("low", ""),
    ];
    assert_eq!(faults(layers, &house(&good)), Vec::<String>::new());
    let bad = [
        "use crate::mid;",
        "pub use crate::mid::M;",
        "use crate::{\n    endpoint,\n    mid::{A, B},\n};",
        "fn f() -> u32 {\n    crate::mid::g(1)\n}",
        "const A: u32 = 1;\nuse super::mid as m;",
        "fn f(m: &super::mid::M) {}",
        "macro_rules! m {\n    () => { $crate::mid::g() };\n}",
        "#[cfg(test)]\nmod tests {\n    use super::*;\n}\nuse crate::mid;",
    ];
    for text in bad {
        let mut all = good.to_vec();
        all[4] = ("low", text);
        let found = faults(layers, &house(&all));
        assert!(found.iter().any(|f| f.starts_with("low uses mid")), "{text}: {found:?}");
    }
    let harmless =
        ["// use crate::mid;", "fn f() { g(\"crate::mid\") }", "#[cfg(test)]\nmod tests {\n    use crate::mid;\n}"];
    for text in harmless {
        let mut all = good.to_vec();
        all[4] = ("low", text);
        assert_eq!(faults(layers, &house(&all)), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn neighbours_circles_and_strangers_are_found() {
    let layers = &layers(TEXT)["c"];
    let found = |files: &[(&str, &str)]| faults(layers, &house(files)).join("\n");
    let with = |one: (&'static str, &'static str)| {
        let mut all = vec![("top", ""), ("top/x", ""), ("top/y", ""), ("mid", ""), ("one", ""), ("low", "")];
        all.retain(|(m, _)| *m != one.0);
        all.push(one);
        all
    };
    assert_eq!(found(&with(("low", ""))), "");
    assert!(found(&with(("mid", "use crate::one;"))).contains("mid uses one"));
    assert!(found(&with(("new", ""))).contains("new stands in the layers not once"));
    assert!(found(&[("top", ""), ("mid", ""), ("one", "")]).contains("low stands in the layers, and is no module"));
    let mut circle = with(("top/x", "use super::y;"));
    circle.retain(|(m, _)| *m != "top/y");
    circle.push(("top/y", "use crate::top::x::f;"));
    assert!(found(&circle).contains("a circle, with what leads to it: top/x, top/y"), "{}", found(&circle));
}
