//! Generates the tables of `docs/control.md` from the table of commands and events.

use crate::control::absent;
use crate::control::kind::Member;
use crate::control::table::{COMMANDS, EVENTS};

/// Returns each table as Markdown, with its name in the page.
pub fn tables() -> [(&'static str, String); 4] {
    let commands = COMMANDS.iter().map(|command| {
        let band = if command.out_of_band { "; also [out of band](#out-of-band)" } else { "" };
        format!("| `{}` | {} | {}{band} |\n", command.name, arguments(&command.arguments.members), command.about)
    });
    let events = EVENTS
        .iter()
        .map(|event| format!("| `{}` | {} | {} |\n", event.name, arguments(&event.data.members), event.about));
    let capabilities = absent::reasons().map(|(name, state, why)| format!("| `{name}` | {state} | {why} |\n"));
    let parameters = absent::PARAMETERS_ABSENT.iter().map(|(name, why)| format!("| `{name}` | {why} |\n"));
    [
        ("commands", "| command | arguments | |\n| --- | --- | --- |\n".to_owned() + &commands.collect::<String>()),
        ("events", "| event | data | when |\n| --- | --- | --- |\n".to_owned() + &events.collect::<String>()),
        (
            "capabilities",
            "| capability | | why |\n| --- | --- | --- |\n".to_owned() + &capabilities.collect::<String>(),
        ),
        ("parameters", "| not here | why |\n| --- | --- |\n".to_owned() + &parameters.collect::<String>()),
    ]
}

/// Lists the names of the arguments; a command with many of them refers to its section.
fn arguments(members: &[Member]) -> String {
    if members.len() > 8 {
        return "see there".into();
    }
    let shown = members.iter().map(|member| match member.needed {
        true => format!("`{}`", member.name),
        false => format!("[`{}`]", member.name),
    });
    shown.collect::<Vec<_>>().join(" ")
}
