//! The figures as Markdown and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::case::{Encoding, Sender, Variant};
use crate::measured::{Group, Ratios, TurnResult};

/// A table for `docs/performance.md`. The columns on bytes sent are included where a variant encodes pages.
pub(crate) fn markdown(group: &Group) -> String {
    let Group { data, transport, mib, .. } = group;
    let smaller = group.results.iter().any(|(variant, _)| variant.encoding != Encoding::Plain);
    let [titles, lines] = if smaller { [" sent | sent to QEMU |", " ---: | ---: |"] } else { ["", ""] };
    let mut text = format!("{data}, {transport}, {mib} MiB\n\n");
    // Writing to a string does not fail.
    let _ = writeln!(text, "| | MB/s, best | MB/s, median | CPU s/GiB, median | speed to QEMU | CPU to QEMU |{titles}");
    let _ = writeln!(text, "| --- | ---: | ---: | ---: | ---: | ---: |{lines}");
    for row in group.rows() {
        let _ = write!(text, "| {} | {:.0} | {:.0} | {:.3} |", row.variant, row.best, row.median, row.cpu);
        let ratio = |of: fn(&Ratios) -> f64| row.to_qemu.map_or(" |".into(), |ratios| format!(" {:.2} |", of(&ratios)));
        text += &ratio(|ratios| ratios.speed);
        text += &ratio(|ratios| ratios.cpu);
        if smaller {
            let limit = matches!(row.variant.sender, Sender::Limit(_));
            text += &if limit { " |".into() } else { format!(" {:.1} % |", row.sent * 100.0) };
            text += &ratio(|ratios| ratios.sent);
        }
        text.push('\n');
    }
    text
}

/// The figures of all turns of all variants.
pub(crate) fn json(groups: &[Group]) -> Value {
    let turn = |taken: &TurnResult| json!({ "seconds": taken.time.as_secs_f64(), "cpu_seconds": taken.cpu.as_secs_f64(), "bytes": taken.bytes });
    let variant = |(variant, turns): &(Variant, Vec<TurnResult>)| json!({ "variant": variant.to_string(), "turns": turns.iter().map(turn).collect::<Value>() });
    let of = |group: &Group| {
        json!({
            "data": group.data.to_string(),
            "transport": group.transport.to_string(),
            "mib": group.mib,
            "variants": group.results.iter().map(variant).collect::<Value>(),
        })
    };
    groups.iter().map(of).collect()
}
