//! Objects that are loaded (the ELF specification's name for libraries and programs), read without a call to the
//! dynamic linker: what it would be asked is one of the functions that we, or others, put in front of it.
// Unsafe here: what the dynamic linker and the kernel have loaded is read through pointers.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ffi::{CStr, c_char};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// `Elf64_Dyn`.
#[repr(C)]
struct Dyn {
    tag: i64,
    value: usize,
}

/// `Elf64_Sym`.
#[repr(C)]
struct Sym {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: usize,
    size: u64,
}

/// `Elf64_Verdef`, as far as it is needed.
#[repr(C)]
struct Verdef {
    version: u16,
    flags: u16,
    index: u16,
    count: u16,
    hash: u32,
    names: u32,
    next: u32,
}

/// `Elf64_Phdr`.
#[repr(C)]
struct Phdr {
    kind: u32,
    flags: u32,
    offset: u64,
    address: usize,
    physical: u64,
    file_size: u64,
    size: u64,
    align: u64,
}

/// The public part of `struct link_map` (link.h).
#[repr(C)]
struct LinkMap {
    base: usize,
    name: *const c_char,
    dynamic: *const Dyn,
    next: *const LinkMap,
    previous: *const LinkMap,
}

/// `struct r_debug` (link.h), as far as it is needed.
#[repr(C)]
struct Debug {
    version: i32,
    first: *const LinkMap,
}

/// `Elf64_Rela`.
#[repr(C)]
struct Rela {
    at: usize,
    info: u64,
    addend: i64,
}

const PT_DYNAMIC: u32 = 2;
const DT_PLTRELSZ: i64 = 2;
const DT_RELA: i64 = 7;
const DT_RELASZ: i64 = 8;
const DT_JMPREL: i64 = 23;
const DT_HASH: i64 = 4;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_SONAME: i64 = 14;
const DT_GNU_HASH: i64 = 0x6fff_fef5;
const DT_VERDEF: i64 = 0x6fff_fffc;
const DT_VERDEFNUM: i64 = 0x6fff_fffd;
const DT_VERSYM: i64 = 0x6fff_fff0;
/// In a symbol's version: not the one that a reference without a version means.
const HIDDEN: u16 = 0x8000;
const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;

/// One object.
#[derive(Clone, Copy)]
pub struct Object {
    base: usize,
    dynamic: *const Dyn,
}

impl PartialEq for Object {
    fn eq(&self, other: &Object) -> bool {
        self.dynamic == other.dynamic
    }
}

impl Object {
    /// From the dynamic linker's list.
    fn of(map: *const LinkMap) -> Option<Object> {
        // SAFETY: null, or an entry of an object that is loaded.
        let m = unsafe { map.as_ref() }?;
        Some(Object { base: m.base, dynamic: m.dynamic })
    }

    /// Whether it is glibc's main library.
    pub fn is_libc(&self) -> bool {
        let (name, strings) = (self.value(DT_SONAME), self.address::<c_char>(DT_STRTAB));
        // SAFETY: an offset into the object's own string table.
        name != 0 && !strings.is_null() && unsafe { CStr::from_ptr(strings.wrapping_add(name)) } == c"libc.so.6"
    }

    /// The dynamic section's value for `tag`, 0 if it has none.
    fn value(&self, tag: i64) -> usize {
        let mut at = self.dynamic;
        loop {
            // SAFETY: the dynamic section of an object that is loaded ends with an entry of tag 0.
            let d = unsafe { &*at };
            if d.tag == tag {
                return d.value;
            }
            if d.tag == 0 {
                return 0;
            }
            at = at.wrapping_add(1);
        }
    }

    /// The same for tags whose value is an address: glibc has added the base in most objects, others have not.
    fn address<T>(&self, tag: i64) -> *const T {
        let v = self.value(tag);
        (if v != 0 && v < self.base { v + self.base } else { v }) as *const T
    }

    /// The address of the function or variable that this object defines as `name`; of several versions the default one.
    pub fn find(&self, name: &CStr) -> Option<usize> {
        self.search(name).map(|(address, _)| address)
    }

    /// The name of the version that [`Object::find`] finds.
    pub fn version(&self, name: &CStr) -> Option<&'static CStr> {
        let (_, version) = self.search(name)?;
        let mut at = self.address::<Verdef>(DT_VERDEF);
        let strings = self.address::<c_char>(DT_STRTAB);
        for _ in 0..self.value(DT_VERDEFNUM) {
            // SAFETY: as many entries as the object says, each with the distance to the next and to its name's place.
            let d = unsafe { at.as_ref() }?;
            if d.index & !HIDDEN == version {
                // SAFETY: as above; the name lies in the object's string table.
                return Some(unsafe {
                    CStr::from_ptr(strings.wrapping_add(*at.wrapping_byte_add(d.names as usize).cast::<u32>() as usize))
                });
            }
            at = at.wrapping_byte_add(d.next as usize);
        }
        None
    }

    /// Address and version of what this object defines as `name`.
    fn search(&self, name: &CStr) -> Option<(usize, u16)> {
        let symbols = self.address::<Sym>(DT_SYMTAB);
        let strings = self.address::<c_char>(DT_STRTAB);
        let versions = self.address::<u16>(DT_VERSYM);
        if symbols.is_null() || strings.is_null() {
            return None;
        }
        let judge = |i: u32| {
            // SAFETY: the index comes from the object's own hash table.
            let s = unsafe { &*symbols.wrapping_add(i as usize) };
            let kind = s.info & 15;
            // SAFETY: one version for each symbol.
            let version = if versions.is_null() { 0 } else { unsafe { *versions.wrapping_add(i as usize) } };
            let there = s.section != 0 && s.value != 0 && (kind == STT_OBJECT || kind == STT_FUNC);
            // SAFETY: names lie in the object's string table.
            let fits = there
                && version & HIDDEN == 0
                && unsafe { CStr::from_ptr(strings.wrapping_add(s.name as usize)) } == name;
            fits.then_some((self.base.wrapping_add(s.value), version))
        };
        let table = self.address::<u32>(DT_GNU_HASH);
        if table.is_null() { self.by_hash(name, judge) } else { by_gnu_hash(table, name, judge) }
    }

    /// Whether it uses a function or a variable of one of these names, wherever that is defined.
    fn uses(&self, names: &[&CStr]) -> bool {
        let symbols = self.address::<Sym>(DT_SYMTAB);
        let strings = self.address::<c_char>(DT_STRTAB);
        if symbols.is_null() || strings.is_null() {
            return false;
        }
        [(DT_RELA, DT_RELASZ), (DT_JMPREL, DT_PLTRELSZ)].iter().any(|&(table, size)| {
            let first = self.address::<Rela>(table);
            (0..if first.is_null() { 0 } else { self.value(size) / size_of::<Rela>() }).any(|i| {
                // SAFETY: as many entries as the object says.
                let symbol = unsafe { (*first.wrapping_add(i)).info >> 32 } as usize;
                if symbol == 0 {
                    return false;
                }
                // SAFETY: a relocation's symbol is in the object's table.
                let name = unsafe { (*symbols.wrapping_add(symbol)).name };
                // SAFETY: names lie in the object's string table.
                names.contains(&unsafe { CStr::from_ptr(strings.wrapping_add(name as usize)) })
            })
        })
    }

    /// The table of the System V ABI; the vDSO of older kernels has no other.
    fn by_hash<T>(&self, name: &CStr, judge: impl Fn(u32) -> Option<T>) -> Option<T> {
        let table = self.address::<u32>(DT_HASH);
        if table.is_null() {
            return None;
        }
        let hash = name.to_bytes().iter().fold(0u32, |h, &b| {
            let h = (h << 4).wrapping_add(b.into());
            (h ^ (h & 0xf000_0000) >> 24) & 0x0fff_ffff
        });
        // SAFETY: two counts, then as many buckets and chain links (System V ABI, figure 5-11).
        let at = |i: usize| unsafe { *table.wrapping_add(i) };
        let (buckets, links) = (at(0), at(1));
        let mut i = at(2 + hash.checked_rem(buckets)? as usize);
        for _ in 0..links {
            if i == 0 || i >= links {
                break;
            }
            if let Some(found) = judge(i) {
                return Some(found);
            }
            i = at(2 + buckets as usize + i as usize);
        }
        None
    }
}

/// GNU's table: four counts, a Bloom filter of words, buckets, then one hash for each symbol; the last of a chain is odd.
fn by_gnu_hash<T>(table: *const u32, name: &CStr, judge: impl Fn(u32) -> Option<T>) -> Option<T> {
    let hash = name.to_bytes().iter().fold(5381u32, |h, &b| h.wrapping_mul(33).wrapping_add(b.into()));
    // SAFETY: the table of an object that is loaded; every index below comes from its own counts and chains.
    let at = |i: usize| unsafe { *table.wrapping_add(i) };
    let (buckets, first, words) = (at(0), at(1), at(2));
    let bucket = 4 + 2 * words as usize;
    let chain = bucket + buckets as usize;
    let mut i = at(bucket + hash.checked_rem(buckets)? as usize);
    if i < first {
        return None;
    }
    loop {
        let h = at(chain + (i - first) as usize);
        if (h ^ hash) >> 1 == 0
            && let Some(found) = judge(i)
        {
            return Some(found);
        }
        if h & 1 != 0 {
            return None;
        }
        i += 1;
    }
}

/// The object that the kernel puts into every process (vdso(7)); a tracer or a sandbox may have taken it away.
pub fn vdso() -> Option<Object> {
    // SAFETY: takes a number and returns one.
    let start = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    if start == 0 {
        return None;
    }
    // SAFETY: an ELF header: at 32 the place of the program headers, at 56 their number.
    let (at, count) = unsafe { (*((start + 32) as *const u64) as usize, *((start + 56) as *const u16)) };
    // SAFETY: the program headers that the ELF header tells of. The object's addresses begin at 0, as those of libraries do.
    let headers = unsafe { core::slice::from_raw_parts((start + at) as *const Phdr, count.into()) };
    let dynamic = headers.iter().find(|h| h.kind == PT_DYNAMIC)?.address;
    Some(Object { base: start, dynamic: (start + dynamic) as *const Dyn })
}

/// The list of all objects, in the order in which names are looked up in those that the program started with. The dynamic
/// linker keeps it for debuggers, where glibc's and musl's own names lead to.
fn list() -> *const LinkMap {
    let (glibc, musl): (*const Debug, *const *const Debug);
    // SAFETY: loads the addresses of two variables, null where there is none of that name.
    unsafe {
        asm!(
            ".weak _r_debug",
            ".weak _dl_debug_addr",
            "mov {}, [rip + _r_debug@GOTPCREL]",
            "mov {}, [rip + _dl_debug_addr@GOTPCREL]",
            out(reg) glibc,
            out(reg) musl,
            options(nostack, pure, readonly),
        );
    }
    // SAFETY: both are set before any code runs but the dynamic linker's own. The program is the first, and stays.
    unsafe {
        let debug = if glibc.is_null() { musl.as_ref().map_or(core::ptr::null(), |d| *d) } else { glibc };
        debug.as_ref().map_or(core::ptr::null(), |d| d.first)
    }
}

/// This library's own dynamic section.
fn own() -> *const Dyn {
    let own;
    // SAFETY: the linker defines the name in every object, for that object alone.
    unsafe { asm!("lea {}, [rip + _DYNAMIC]", out(reg) own, options(nostack, pure, nomem)) };
    own
}

/// All objects. Those that were there at the start are never taken out.
fn all() -> impl Iterator<Item = Object> {
    let mut at = list();
    core::iter::from_fn(move || {
        let object = Object::of(at)?;
        // SAFETY: the entry of `object`.
        at = unsafe { (*at).next };
        Some(object)
    })
}

/// Whether an object other than libc uses a function or a variable of one of these names.
pub fn any_uses(names: &[&CStr]) -> bool {
    all().any(|o| !o.is_libc() && o.uses(names))
}

/// The objects up to this library, itself included.
pub fn up_to_us() -> impl Iterator<Item = Object> {
    let own = own();
    let mut past = false;
    all().take_while(move |o| !core::mem::replace(&mut past, o.dynamic == own))
}

/// This library.
pub fn us() -> Option<Object> {
    let own = own();
    all().find(|o| o.dynamic == own)
}

/// The objects that the search for a name that this library defines would come to next, had it not been found here.
pub fn after_us() -> impl Iterator<Item = Object> {
    let own = own();
    all().skip_while(move |o| o.dynamic != own).skip(1)
}

/// The object that `address` lies in, by glibc's `dladdr1`.
pub fn containing(address: usize) -> Option<Object> {
    static SLOT: AtomicUsize = AtomicUsize::new(0);
    const RTLD_DL_LINKMAP: i32 = 2;
    type Dladdr1 = unsafe extern "C" fn(usize, *mut libc::Dl_info, *mut *const LinkMap, i32) -> i32;
    let mut f = SLOT.load(Relaxed);
    if f == 0 {
        f = after_us().find_map(|o| o.find(c"dladdr1"))?;
        SLOT.store(f, Relaxed);
    }
    let mut info = MaybeUninit::uninit();
    let mut map = core::ptr::null();
    // SAFETY: libc's function of this name has this type.
    let f: Dladdr1 = unsafe { core::mem::transmute(f) };
    // SAFETY: any address may be asked for; writes two locals.
    let found = unsafe { f(address, info.as_mut_ptr(), &mut map, RTLD_DL_LINKMAP) };
    if found == 0 { None } else { Object::of(map) }
}
