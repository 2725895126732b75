//! The figures as Markdown and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::measured::Group;

/// A table for `docs/performance.md`.
pub(crate) fn markdown(group: &Group) -> String {
    let Group { data, transport, mib, .. } = group;
    let mut text = format!("{data:?}, {transport:?}, {mib} MiB\n\n").to_lowercase().replace("mib", "MiB");
    text += "| | MB/s, best | MB/s, median | CPU s/GiB, median | speed to QEMU | CPU to QEMU |\n";
    text += "| --- | ---: | ---: | ---: | ---: | ---: |\n";
    for row in group.rows() {
        let ratios = row.to_qemu.map_or("| |".into(), |ratios| format!("{:.2} | {:.2} |", ratios.speed, ratios.cpu));
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {} | {:.0} | {:.0} | {:.3} | {ratios}", row.variant, row.best, row.median, row.cpu);
    }
    text
}

/// All turns of all variants.
pub(crate) fn json(groups: &[Group]) -> Value {
    let turns = |all: &[crate::measured::Taken]| -> Vec<Value> {
        let turn = |taken: &crate::measured::Taken| json!({ "seconds": taken.time.as_secs_f64(), "cpu_seconds": taken.cpu.as_secs_f64() });
        all.iter().map(turn).collect()
    };
    let of = |group: &Group| {
        let variants =
            group.taken.iter().map(|(variant, all)| json!({ "variant": variant.to_string(), "turns": turns(all) }));
        json!({
            "data": format!("{:?}", group.data).to_lowercase(),
            "transport": format!("{:?}", group.transport).to_lowercase(),
            "mib": group.mib,
            "variants": variants.collect::<Vec<_>>(),
        })
    };
    groups.iter().map(of).collect()
}
