//! Images: the files a guest is started from, and how they are made ready on the host.
//!
//! Reading order: [`kernel`] turns what the user names as a kernel into a file that can be
//! mapped, [`initramfs`] makes mote's default user space, and [`cache`] keeps what both produce,
//! so that only the first start pays for it. Nothing here knows about KVM.

pub mod cache;
pub mod initramfs;
pub mod kernel;

mod elf;
