//! Finds the kernel symbol nearest to an address, for crash reports.

use std::fs::File;

use object::elf::FileHeader64;
use object::read::elf::{ElfFile, FileHeader as _};
use object::{LittleEndian, Object, ObjectSymbol, ReadCache, SymbolKind};

/// The symbol at or below `address` (a kernel virtual address), and how far above it `address` is.
/// Nothing where the image has no symbols or `address` is below all of them.
pub fn nearest(kernel: &File, address: u64) -> Option<(String, u64)> {
    let cache = ReadCache::new(kernel);
    FileHeader64::<LittleEndian>::parse(&cache).ok()?;
    let elf = ElfFile::<FileHeader64<LittleEndian>, _>::parse(&cache).ok()?;
    elf.symbols()
        .filter(|symbol| {
            matches!(
                symbol.kind(),
                SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown
            )
        })
        .filter(|symbol| symbol.address() <= address && symbol.address() != 0)
        .max_by_key(ObjectSymbol::address)
        .and_then(|symbol| Some((symbol.name().ok()?.to_owned(), address - symbol.address())))
}
