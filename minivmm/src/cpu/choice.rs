//! CPU that the user selects: a model, or the host's, with features switched on and off.

use crate::config::Cpu;
use crate::cpu::features::Feature;
use crate::cpu::model::Model;
use crate::cpu::models::MODELS;

/// Name of the CPU with all features that the host offers.
const HOST: &str = "host";

/// Selected CPU model and changes.
#[derive(Clone, Debug)]
pub struct Choice {
    model: Option<&'static Model>,
    changes: Vec<(Feature, bool)>,
}

impl Choice {
    /// Looks up the model and the features that `cpu` names.
    ///
    /// # Errors
    /// The reason, as a sentence for the user: a name that is unknown, or a feature that is switched both on and off.
    pub fn new(cpu: &Cpu) -> Result<Self, String> {
        let model = match MODELS.iter().find(|model| model.names.contains(&cpu.model.as_str())) {
            Some(model) => Some(*model),
            None if cpu.model == HOST => None,
            None => return Err(format!("'{}' is no model; models are {}", cpu.model, names().join(", "))),
        };
        let mut changes: Vec<(Feature, bool)> = Vec::new();
        for (name, on) in &cpu.features {
            let feature = Feature::find(name).ok_or_else(|| {
                format!("'{name}' is no CPU feature; names are those of `qemu-system-x86_64 -cpu help`")
            })?;
            match changes.iter().find(|(other, _)| *other == feature) {
                Some((_, other)) if other != on => {
                    return Err(format!("{} is switched on and off; say it once", feature.name()));
                }
                Some(_) => {}
                None => changes.push((feature, *on)),
            }
        }
        Ok(Self { model, changes })
    }

    /// Selects all features that the host offers.
    pub fn host() -> Self {
        Self { model: None, changes: Vec::new() }
    }

    /// Selected model; `None` is the host's CPU.
    pub fn model(&self) -> Option<&'static Model> {
        self.model
    }

    /// Features switched on or off, each once.
    pub fn changes(&self) -> &[(Feature, bool)] {
        &self.changes
    }

    /// The value of QEMU's `-cpu` for this choice, with `enforce`: QEMU starts with all features or not at all.
    pub fn qemu(&self) -> String {
        let mut words = vec![self.model.map_or(HOST, |model| model.qemu).to_owned()];
        words.extend(
            self.changes.iter().map(|(feature, on)| format!("{}{}", if *on { '+' } else { '-' }, feature.name())),
        );
        words.push("enforce".into());
        words.join(",")
    }

    /// The model's first name.
    pub fn name(&self) -> &'static str {
        self.model.map_or(HOST, |model| model.names[0])
    }
}

/// All names a model can be chosen by.
fn names() -> Vec<&'static str> {
    let models = MODELS.iter().flat_map(|model| model.names.iter().copied());
    std::iter::once(HOST).chain(models).collect()
}
