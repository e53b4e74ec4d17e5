//! What an ELF file says about itself, as far as preloading is concerned.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Sym};
use object::{Endianness, ReadCache, ReadRef};

/// An x86-64 ELF program or library.
#[derive(Debug, Default)]
pub struct Image {
    /// Dynamic linker it asks for; `None`: statically linked, or a library.
    pub interpreter: Option<PathBuf>,
    /// DT_SONAME.
    pub soname: Option<String>,
    /// DT_NEEDED: the libraries it is linked with.
    pub needed: Vec<String>,
    /// Built by the Go toolchain.
    pub go: bool,
    /// Functions it expects from others.
    pub imports: Vec<String>,
    /// Functions it offers to others.
    pub exports: Vec<String>,
}

/// Why a file is not an [`Image`].
#[derive(Debug)]
pub enum ElfError {
    /// Could not be read.
    Io(std::io::Error),
    /// Does not begin with the ELF magic number.
    NotElf,
    /// For another processor or ABI, named.
    Foreign(&'static str),
    /// Begins like an ELF file, but is damaged.
    Damaged(String),
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ElfError::Io(e) => e.fmt(f),
            ElfError::NotElf => f.write_str("not an ELF file"),
            ElfError::Foreign(what) => write!(f, "built for {what}; culvert serves 64-bit x86 programs"),
            ElfError::Damaged(why) => write!(f, "damaged ELF file ({why})"),
        }
    }
}

/// Reads `path`; only the parts that matter, however large the file.
pub fn read(path: &Path) -> Result<Image, ElfError> {
    let file = File::open(path).map_err(ElfError::Io)?;
    if !file.metadata().map_err(ElfError::Io)?.is_file() {
        return Err(ElfError::NotElf);
    }
    parse(&ReadCache::new(file))
}

/// Reads an image in memory or in a cached file.
pub fn parse<'data>(data: impl ReadRef<'data>) -> Result<Image, ElfError> {
    let ident = data.read_bytes_at(0, 20).map_err(|()| ElfError::NotElf)?;
    if ident[..4] != elf::ELFMAG {
        return Err(ElfError::NotElf);
    }
    let machine = match ident[5] {
        elf::ELFDATA2LSB => u16::from_le_bytes([ident[18], ident[19]]),
        _ => u16::from_be_bytes([ident[18], ident[19]]),
    };
    match (machine, ident[4]) {
        (elf::EM_X86_64, elf::ELFCLASS64) => {}
        (elf::EM_X86_64, _) => return Err(ElfError::Foreign("x32")),
        (elf::EM_386, _) => return Err(ElfError::Foreign("32-bit x86")),
        (elf::EM_AARCH64, _) => return Err(ElfError::Foreign("64-bit ARM")),
        (elf::EM_ARM, _) => return Err(ElfError::Foreign("32-bit ARM")),
        (elf::EM_RISCV, _) => return Err(ElfError::Foreign("RISC-V")),
        _ => return Err(ElfError::Foreign("another processor")),
    }
    image(data).map_err(|e| ElfError::Damaged(e.to_string()))
}

fn image<'data>(data: impl ReadRef<'data>) -> object::Result<Image> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let mut image = Image::default();
    for segment in header.program_headers(endian, data)? {
        if let Some(name) = segment.interpreter(endian, data)? {
            image.interpreter = Some(PathBuf::from(text(name)));
        }
    }
    let sections = header.sections(endian, data)?;
    image.go = [&b".go.buildinfo"[..], b".note.go.buildid"]
        .iter()
        .any(|name| sections.section_by_name(endian, name).is_some());
    if let Some((entries, link)) = sections.dynamic(endian, data)? {
        let strings = sections.strings(endian, data, link)?;
        for entry in entries {
            let string = || {
                let at = entry.val32(endian).ok_or(())?;
                strings.get(at).map(text)
            };
            match entry.tag32(endian) {
                Some(elf::DT_NEEDED) => image.needed.extend(string().ok()),
                Some(elf::DT_SONAME) => image.soname = string().ok(),
                Some(elf::DT_NULL) => break,
                _ => {}
            }
        }
    }
    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM)?;
    for symbol in symbols.iter() {
        let name = text(symbol.name(endian, symbols.strings())?);
        if name.is_empty() {
        } else if symbol.is_undefined(endian) {
            image.imports.push(name);
        } else if symbol.st_type() == elf::STT_FUNC {
            image.exports.push(name);
        }
    }
    Ok(image)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A minimal ELF file: header, and a PT_INTERP segment if `interpreter` is given.
    pub fn tiny(class: u8, machine: u16, interpreter: Option<&str>) -> Vec<u8> {
        let mut f = vec![0; 64];
        f[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1, 1]);
        f[16..18].copy_from_slice(&2u16.to_le_bytes());
        f[18..20].copy_from_slice(&machine.to_le_bytes());
        f[20..24].copy_from_slice(&1u32.to_le_bytes());
        f[32..40].copy_from_slice(&64u64.to_le_bytes());
        f[52..54].copy_from_slice(&64u16.to_le_bytes());
        f[54..56].copy_from_slice(&56u16.to_le_bytes());
        if let Some(name) = interpreter {
            f[56] = 1;
            let mut segment = vec![0; 56];
            segment[0] = 3;
            let len = (name.len() as u64 + 1).to_le_bytes();
            segment[8..16].copy_from_slice(&120u64.to_le_bytes());
            segment[32..40].copy_from_slice(&len);
            segment[40..48].copy_from_slice(&len);
            f.extend(segment);
            f.extend(name.as_bytes());
            f.push(0);
        }
        f
    }

    #[test]
    fn the_interpreter_is_read() {
        let image = parse(&tiny(2, 62, Some("/lib64/ld-linux-x86-64.so.2"))[..]).unwrap();
        assert_eq!(image.interpreter.unwrap(), Path::new("/lib64/ld-linux-x86-64.so.2"));
        assert!(parse(&tiny(2, 62, None)[..]).unwrap().interpreter.is_none());
    }

    #[test]
    fn other_machines_are_named() {
        for (class, machine, name) in [(1, 3, "32-bit x86"), (2, 183, "64-bit ARM"), (1, 62, "x32"), (2, 22, "another")]
        {
            let e = parse(&tiny(class, machine, None)[..]).unwrap_err();
            assert!(matches!(e, ElfError::Foreign(_)) && e.to_string().contains(name), "{e}");
        }
    }

    #[test]
    fn every_truncation_is_an_error_not_a_panic() {
        let whole = tiny(2, 62, Some("/lib64/ld-linux-x86-64.so.2"));
        for n in 0..whole.len() {
            assert!(parse(&whole[..n]).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn a_real_program_imports_and_a_real_library_exports() {
        let me = read(&std::env::current_exe().unwrap()).unwrap();
        assert!(me.needed.iter().any(|n| n == "libc.so.6"));
        assert!(me.imports.iter().any(|n| n == "write"));
        assert!(!me.go);
    }
}
