//! `minivmm from-qemu` and `minivmm to-qemu`: the same machine in the other monitor's words, or which part has no match.

mod from_qemu;
mod options;
#[cfg(test)]
mod tests;
mod to_qemu;

use clap::Args;

pub use from_qemu::from_qemu;
pub use to_qemu::to_qemu;

/// Properties of QEMU's network card that switch UDP segmentation off; a QEMU before 8.2 has neither them nor the segmentation.
const USO: [&str; 3] = ["host_uso", "guest_uso4", "guest_uso6"];

/// A command line to translate.
#[derive(Args, Clone, Debug)]
pub struct TranslateArgs {
    /// The command line, behind `--`
    #[arg(last = true, required = true, value_name = "WORD")]
    pub words: Vec<String>,
}

/// The words of the other command line, or a sentence for each part without a match.
pub type Translation = Result<Vec<String>, Vec<String>>;

/// A command line of the shell that gives these words.
pub fn line(words: &[String]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a POSIX shell reads it back: between single quotes nothing but the single quote itself is special (POSIX.1-2017,
/// Shell Command Language, 2.2.2).
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
