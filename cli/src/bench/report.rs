//! `mote bench report`: the tables of a record, or what is different in a second one.

use std::path::{Path, PathBuf};

use ::bench::compare::compare;
use ::bench::{document, table};

use super::Error;
use super::output::Pictures;
use crate::ctl::print;
use crate::status::Status;

/// `mote bench report`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Record of a measurement, as --json writes it
    #[arg(value_name = "A.json")]
    a: PathBuf,

    /// Another one, which is compared with the first: its host should be the same
    #[arg(value_name = "B.json")]
    b: Option<PathBuf>,

    /// Print the comparison as JSON for scripts
    #[arg(long, requires = "b")]
    json: bool,

    #[command(flatten)]
    pictures: Pictures,
}

/// Prints what the files say.
pub(super) fn report(args: &Args) -> Result<Status, Error> {
    print(&text(args)?);
    Ok(Status::Success)
}

fn text(args: &Args) -> Result<String, Error> {
    let a = document::read(&args.a)?;
    args.pictures.write(&a)?;
    let Some(path) = &args.b else {
        return Ok(table::text(&a));
    };
    let found = compare(&a, &document::read(path)?)?;
    Ok(if args.json {
        // Strings and numbers: nothing in it can fail to serialize.
        serde_json::to_string_pretty(&found).unwrap_or_default() + "\n"
    } else {
        table::comparison(&found, &name(&args.a), &name(path))
    })
}

/// What a file is called in a table.
fn name(path: &Path) -> String {
    path.display().to_string()
}
