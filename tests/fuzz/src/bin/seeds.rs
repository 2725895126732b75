//! Writes what the driver begins with: `seeds DIRECTORY` makes a folder of inputs for each target, and prints their names.

use std::path::Path;

use vmstate_fuzz::TARGETS;

fn main() -> std::io::Result<()> {
    let root = std::env::args().nth(1).expect("usage: seeds DIRECTORY");
    for target in TARGETS {
        let folder = Path::new(&root).join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (index, seed) in target.seeds().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index}")), seed)?;
        }
        println!("{}", target.name);
    }
    Ok(())
}
