//! `minivmm from-qemu` and `minivmm to-qemu` translate a machine's command line, or name each part that has no match.

mod from_qemu;
mod options;
#[cfg(test)]
mod tests;
mod to_qemu;

use clap::Args;

pub use from_qemu::from_qemu;
pub use to_qemu::to_qemu;

/// Properties of QEMU's network card that switch UDP segmentation off; a QEMU before 8.2 has neither the properties nor the
/// segmentation.
const USO: [&str; 3] = ["host_uso", "guest_uso4", "guest_uso6"];

/// A command line to translate.
#[derive(Args, Clone, Debug)]
pub struct TranslateArgs {
    /// Command line to translate, behind `--`
    #[arg(last = true, required = true, value_name = "WORD")]
    pub words: Vec<String>,
}

/// Words of the translated command line, or a sentence for each part without a match.
pub type Translation = Result<Vec<String>, Vec<String>>;

/// Joins words to a command line of the shell.
pub fn line(words: &[String]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// Quotes a word for a POSIX shell: between single quotes nothing but the single quote itself is special (POSIX.1-2017,
/// Shell Command Language, 2.2.2).
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
