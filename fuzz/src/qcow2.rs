//! A damaged image: a good one of any layout with some bytes changed, or anything at all, as a qcow2
//! image or as an overlay's file. If it can be opened, a guest uses it.

use devices::backend::disk::{Format, Overlay};
use devices::virtio::block::BlockConfig;

use super::Input;
use super::block::{Disks, config};
use super::images::{Layout, Memory, prepare, qcow2};

/// Changes to a good image.
const MAX_CHANGES: u8 = 32;
/// Bytes of a disk under an overlay.
const BASE_SIZE: u64 = 1 << 20;

/// Runs one guest.
pub fn run(input: &[u8]) {
    prepare();
    let mut input = Input(input);
    let (what, kind, shape) = (input.u8(), input.u8(), input.u8());
    if what % 4 == 3 {
        return overlay(kind, &mut input);
    }
    let layout = Layout {
        cluster_bits: 9 + u32::from(shape >> 4) % 13,
        version: 2 + u32::from(shape & 1),
        refcount_order: u32::from(shape >> 1) % 7,
        zstd: what & 4 != 0,
        size: u64::from(input.u16()) << 10,
    };
    let mut image = qcow2(layout);
    let mut is_good = false;
    if what % 4 == 2 {
        // No image in particular.
        let count = usize::from(input.u16());
        image = input.bytes(count).to_vec();
    } else {
        let changes = input.u8() % MAX_CHANGES;
        is_good = changes == 0 && layout.fits();
        for _ in 0..changes {
            change(&mut image, layout.cluster_bits, &mut input);
        }
    }
    let image = Memory::new(&image, 0);
    let config = BlockConfig {
        format: Format::Qcow2,
        overlay: if what & 8 == 0 {
            Overlay::None
        } else {
            Overlay::Temporary
        },
        ..config(image.path(), kind, 0)
    };
    Disks::run(config, image, is_good, &mut input);
}

/// Writes up to eight bytes at a time, as a number: most places in an image are multiples of a cluster.
fn change(image: &mut Vec<u8>, cluster_bits: u32, input: &mut Input<'_>) {
    let shape = input.u8();
    // In the header, or at the start of a cluster.
    let place = usize::from(input.u8());
    let place = match shape & 3 {
        0 => place,
        1 => ((usize::from(input.u8()) % 10) << cluster_bits) + 8 * place,
        _ => ((1 + (place & 3)) << cluster_bits) + 8 * (place >> 2),
    };
    let value = match shape >> 2 & 7 {
        0 => u64::from(input.u8()),
        1 => u64::from(input.u8()) << cluster_bits,
        2 => u64::from(input.u8()) << cluster_bits | 1 << 63,
        3 => u64::from(input.u32()) << 32 | u64::from(input.u32()),
        4 => u64::from(input.u32()) << cluster_bits | 1 << 63,
        5 => 1 << 62 | u64::from(input.u32()) << 32 | u64::from(input.u32()),
        6 => u64::MAX,
        _ => {
            let keep = usize::from(input.u16()) << 4;
            image.truncate(keep);
            return;
        }
    };
    let width = [8, 4, 1, 8, 8, 4, 2, 8][usize::from(shape >> 5)];
    let bytes = &value.to_be_bytes()[8 - width..];
    if let Some(to) = image.get_mut(place..place + width) {
        to.copy_from_slice(bytes);
    }
}

/// A file that claims to be an overlay.
fn overlay(kind: u8, input: &mut Input<'_>) {
    let base = Memory::new(&[], BASE_SIZE);
    let count = usize::from(input.u16() % 0x400);
    let file = Memory::new(input.bytes(count), 0);
    let config = BlockConfig {
        format: Format::Raw,
        overlay: Overlay::File(file.path()),
        ..config(base.path(), kind, 0)
    };
    Disks::run(config, base, false, input);
}
