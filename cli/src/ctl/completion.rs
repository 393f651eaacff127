//! `mote completion`: scripts for shells.

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell as Script;

use super::{Error, print};
use crate::args::Cli;
use crate::status::Status;

/// `mote completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
bash: mote completion bash >~/.local/share/bash-completion/completions/mote
zsh:  mote completion zsh >\"${fpath[1]}/_mote\"
fish: mote completion fish >~/.config/fish/completions/mote.fish")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Shells that there are scripts for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn completion(args: &Args) -> Result<Status, Error> {
    let script = match args.shell {
        Shell::Bash => Script::Bash,
        Shell::Zsh => Script::Zsh,
        Shell::Fish => Script::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(script, &mut Cli::command(), "mote", &mut text);
    print(&String::from_utf8_lossy(&text));
    Ok(Status::Success)
}
