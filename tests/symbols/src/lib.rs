//! What shared objects export, import and need, and where the dynamic linker would find them.
//!
//! - `CULVERT_LIB`: the library under test, else `target/release/libculvert.so` of this workspace.

use object::read::elf::{Dyn, ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSymbol, ObjectSymbolTable, RelocationTarget, elf};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "../../../shim/src/exports/symbols.rs"]
pub mod symbols;

/// Where Debian's dynamic linker looks on x86-64.
const LIBRARY_DIRS: [&str; 4] = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"];

/// Where programs are.
const PROGRAM_DIRS: [&str; 6] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin"];

/// The dynamic side of one ELF file.
pub struct Dynamic {
    /// The file.
    pub path: PathBuf,
    /// Names it defines.
    pub exports: BTreeSet<String>,
    /// Names it needs from others.
    pub imports: BTreeSet<String>,
    /// Names that the dynamic linker looks up for it, each for a place in its memory.
    pub bound: BTreeSet<String>,
    /// Libraries it asks for.
    pub needed: Vec<String>,
}

impl Dynamic {
    /// Reads `path`; an error says what is wrong with it.
    pub fn read(path: &Path) -> Result<Dynamic, String> {
        let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let data = fs::read(path).map_err(|e| fail(&e))?;
        let file = ElfFile64::<Endianness>::parse(&*data).map_err(|e| fail(&e))?;
        let (mut exports, mut imports) = (BTreeSet::new(), BTreeSet::new());
        for s in file.dynamic_symbols() {
            let name = s.name().map_err(|e| fail(&e))?;
            // Version nodes (`GLIBC_2.34`) are absolute symbols.
            if name.is_empty() || s.elf_symbol().st_shndx.get(Endianness::Little) == elf::SHN_ABS {
                continue;
            }
            if s.is_undefined() {
                imports.insert(name.to_owned())
            } else {
                exports.insert(name.to_owned())
            };
        }
        let mut bound = BTreeSet::new();
        let symbols = file.dynamic_symbol_table();
        for (_, r) in file.dynamic_relocations().into_iter().flatten() {
            if let (RelocationTarget::Symbol(i), Some(symbols)) = (r.target(), &symbols) {
                let symbol = symbols.symbol_by_index(i).map_err(|e| fail(&e))?;
                bound.insert(symbol.name().map_err(|e| fail(&e))?.to_owned());
            }
        }
        let needed = needed(&file, &data).map_err(|e| fail(&e))?;
        Ok(Dynamic { path: path.to_owned(), exports, imports, bound, needed })
    }

    /// The file's name.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

fn needed(file: &ElfFile64<Endianness>, data: &[u8]) -> object::Result<Vec<String>> {
    let endian = file.endian();
    let header = file.elf_header();
    let sections = header.sections(endian, data)?;
    let Some((entries, link)) = sections.dynamic(endian, data)? else { return Ok(Vec::new()) };
    let strings = sections.strings(endian, data, link)?;
    let mut names = Vec::new();
    for d in entries.iter().filter(|d| d.tag32(endian) == Some(elf::DT_NEEDED)) {
        names.push(String::from_utf8_lossy(d.string(endian, strings)?).into_owned());
    }
    Ok(names)
}

/// The library under test.
pub fn culvert() -> Dynamic {
    let path = env::var_os("CULVERT_LIB").map(PathBuf::from).unwrap_or_else(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from).join("release/libculvert.so")
    });
    Dynamic::read(&path).unwrap_or_else(|e| panic!("{e}: build it with `cargo build --release`, or set CULVERT_LIB"))
}

/// The installed libc.
pub fn libc() -> Dynamic {
    let path = find(&LIBRARY_DIRS, "libc.so.6").expect("libc.so.6 in a standard place");
    Dynamic::read(&path).unwrap_or_else(|e| panic!("{e}"))
}

fn find(dirs: &[&str], name: &str) -> Option<PathBuf> {
    dirs.iter().map(|d| Path::new(d).join(name)).find(|p| p.exists())
}

/// An installed program, or shared objects below a directory that one loads at run time.
pub fn program(name: &str) -> Option<PathBuf> {
    find(&PROGRAM_DIRS, name)
}

/// Shared objects directly in `dir`; none if there is no such directory.
pub fn plugins(dir: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "so")).collect();
    paths.sort();
    paths
}

/// `start` and all libraries they need, each once, except libc itself and what is built with it: those see
/// each other's inside and take part in nothing that could be interposed.
pub fn with_libraries(start: &[PathBuf]) -> Result<Vec<Dynamic>, String> {
    let mut todo: Vec<PathBuf> = start.to_vec();
    let mut seen = BTreeMap::new();
    while let Some(path) = todo.pop() {
        let real = fs::canonicalize(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        if seen.contains_key(&real) {
            continue;
        }
        let d = Dynamic::read(&real)?;
        for n in d.needed.iter().filter(|n| !part_of_libc(n)) {
            // What is in none of the standard places came with a program that knows where (a run path).
            todo.extend(find(&LIBRARY_DIRS, n));
        }
        seen.insert(real, d);
    }
    Ok(seen.into_values().collect())
}

fn part_of_libc(soname: &str) -> bool {
    const PARTS: [&str; 11] = [
        "libc",
        "ld-linux-x86-64",
        "libm",
        "libmvec",
        "libpthread",
        "libdl",
        "librt",
        "libutil",
        "libresolv",
        "libanl",
        "libnss_",
    ];
    PARTS.iter().any(|p| soname.strip_prefix(p).is_some_and(|rest| rest.starts_with(".so") || p.ends_with('_')))
}

/// The plain name behind one of glibc's variants: `__recv_chk` is `recv`, `__open64_2` is `open`.
pub fn stem(name: &str) -> &str {
    let mut s = name;
    for p in ["__libc_", "_IO_", "__"] {
        if let Some(rest) = s.strip_prefix(p) {
            s = rest;
            break;
        }
    }
    loop {
        let shorter = ["_chk", "_nocancel", "_2", "64"].iter().find_map(|x| s.strip_suffix(x));
        match shorter {
            Some(rest) if !rest.is_empty() => s = rest,
            _ => return s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::stem;

    #[test]
    fn stems() {
        for (name, want) in [
            ("__recv_chk", "recv"),
            ("__open64_2", "open"),
            ("sendfile64", "sendfile"),
            ("__libc_fcntl64", "fcntl"),
            ("_IO_fdopen", "fdopen"),
            ("__close_nocancel", "close"),
            ("read", "read"),
            ("64", "64"),
        ] {
            assert_eq!(stem(name), want, "{name}");
        }
    }
}
