//! `minivmm completions` and `minivmm man` generate shell completions and manual pages from the declaration of the command
//! line.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::{Cli, UsageError};

/// Flags of `minivmm completions`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  minivmm completions bash > ~/.local/share/bash-completion/completions/minivmm\n  \
minivmm completions zsh > ~/.zfunc/_minivmm\n  minivmm completions fish > ~/.config/fish/completions/minivmm.fish"
)]
pub struct CompletionsArgs {
    /// Shell to print completions for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl CompletionsArgs {
    /// Generates the shell's completion script.
    pub fn text(&self) -> Vec<u8> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "minivmm", &mut script);
        script
    }
}

/// Flags of `minivmm man`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  minivmm man | man -l -\n  minivmm man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Folder to write minivmm.1, minivmm-run.1 and so on into; without it minivmm.1 is printed
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl ManArgs {
    /// Generates the manual pages; returns the page to print, or nothing where pages were written to a folder.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn carry_out(&self) -> Result<Vec<u8>, UsageError> {
        let mut page = Vec::new();
        let written = match &self.folder {
            None => Man::new(Cli::command()).render(&mut page),
            Some(folder) => write_pages(folder),
        };
        let place = self.folder.as_deref().unwrap_or("the page".as_ref()).display();
        written.map_err(|error| UsageError(format!("{place}: {error}; give a folder that may be written to")))?;
        Ok(page)
    }
}

fn write_pages(folder: &PathBuf) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)
}
