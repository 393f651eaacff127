//! Writes the seeds of all targets to `seeds/`, in the place of those that are there by the same names.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for (target, make) in mote_fuzz::seeds::TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(target);
        std::fs::create_dir_all(&directory)?;
        for (name, bytes) in make() {
            std::fs::write(directory.join(name), bytes)?;
        }
    }
    Ok(())
}
