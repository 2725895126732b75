//! Arguments, files and outputs of `minivmm plan`. Tests of vmstate hold the plan itself against arithmetic.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::Planned;
use crate::cli::{Command, Parsed, parse, values};

fn planned(line: &str) -> Result<Planned, String> {
    let words = ["minivmm", "plan"].into_iter().chain(line.split_whitespace());
    let arguments = match parse(words).map_err(|error| error.to_string())? {
        Parsed::Command(command) => *command,
        Parsed::Text(text) => return Err(text),
    };
    let Command::Plan(arguments) = arguments else { panic!("another command") };
    arguments.carry_out().map_err(|error| error.to_string())
}

fn as_json(line: &str) -> Value {
    let planned = planned(&format!("{line} --json")).expect("a plan");
    serde_json::from_str(&planned.text).expect("JSON")
}

#[test]
fn rates_are_bits_on_the_wire_and_bytes_in_memory() {
    let wire = |text: &str| values::bandwidth(text).ok();
    for text in ["100G", "100g", "100Gbit/s", "100Gbit", "100Gbps", "0.1T", "100000M"] {
        assert_eq!(wire(text), Some(12_500_000_000), "{text}");
    }
    for text in ["12G/s", "12GB/s", "12GB"] {
        assert_eq!(wire(text), Some(12 << 30), "{text}");
    }
    assert_eq!(
        (wire("800"), wire("800bit/s"), wire("100/s"), wire("1.5K/s")),
        (Some(100), Some(100), Some(100), Some(1536))
    );
    for text in ["", "G", "/s", "-1G", "+1G", "1e9", "fast", "0", "7bit/s/s", "1.2.3G", "9999999999T"] {
        assert_eq!(wire(text), None, "{text}");
    }
    let writes = |text: &str| values::bytes_per_second(text).ok();
    assert_eq!((writes("2G/s"), writes("2G"), writes("2GB/s")), (Some(2 << 30), Some(2 << 30), Some(2 << 30)));
    assert_eq!((writes("0"), writes("2Gbit/s"), writes("-1")), (Some(0), None, None));
    let micros = |text: &str| values::short_time(text).ok().map(|time| time.as_micros());
    assert_eq!([micros("0.2ms"), micros("0.2"), micros("200us"), micros("1s")], [200, 200, 200, 1_000_000].map(Some));
    assert_eq!([micros("fast"), micros("-1ms"), micros("1h")], [None; 3]);
    let share = |text: &str| values::share(text).ok();
    assert_eq!((share("1%"), share("0"), share("100%"), share("-1")), (Some(0.01), Some(0.0), None, None));
}

#[test]
fn the_report_has_rounds_times_and_the_verdict() {
    let line = "--memory 4T --dirty-rate 2G/s --working-set 64G --bandwidth 100G";
    let shown = planned(line).expect("a plan");
    assert!(shown.completes);
    let lines: Vec<_> = shown.text.lines().collect();
    assert_eq!(lines[0], "guest    4 TiB of memory, 1 vCPU, writes 2 GiB/s to 64 GiB, steadily");
    assert_eq!(lines[1], "wire     100 Gbit/s, round trip 0.2 ms");
    // 4 TiB with a head of 8 bytes for each page at 12.5 GB/s: 352.5 s.
    assert!(lines[4].starts_with("    1     0.4 ms      353 s    4.01 TiB"), "{}", shown.text);
    assert!(
        lines.last().is_some_and(|last| last.starts_with("verdict  completes: 3 rounds, 358 s in all")),
        "{}",
        shown.text
    );
    let figures = as_json(line);
    assert_eq!((&figures["completes"], figures["rounds"].as_array().map(Vec::len)), (&json!(true), Some(3)));
    let first = figures["rounds"][0]["duration"].as_f64().expect("milliseconds");
    assert!((first - 352_533.0).abs() < 1000.0, "{first}");
}

#[test]
fn a_proposed_remedy_can_be_typed_and_suffices() {
    let line = "--memory 1G --dirty-rate 200M/s --bandwidth 1G --latency 1ms --vcpus 4";
    let shown = planned(line).expect("a plan");
    assert!(!shown.completes && shown.text.contains("does not converge: after 200 rounds"), "{}", shown.text);
    let enough: Vec<_> = shown.text.lines().skip_while(|line| !line.starts_with("enough")).collect();
    assert_eq!(enough.len(), 3, "{enough:?}");
    for remedy in enough {
        let flags = remedy[9..].split(',').next().unwrap();
        let repeated =
            line.replace("--bandwidth 1G", if flags.contains("--bandwidth") { "" } else { "--bandwidth 1G" });
        assert!(planned(&format!("{repeated} {flags}")).expect("a plan").completes, "{flags}");
    }
    // The plan says so where no single change is enough.
    let shown = planned(&format!("{line} --auto-converge --max-rounds 1 --downtime-limit 0")).expect("a plan");
    assert!(shown.text.contains("enough   "), "{}", shown.text);
}

#[test]
fn every_condition_of_a_guest_and_a_wire_can_be_given() {
    for pattern in ["steady", "bursty", "phased", "hot-spot"] {
        let line = format!(
            "--memory 2G --zero 1G --dirty-rate 20M/s --working-set 100M --pattern {pattern} --vcpus 16 --bandwidth 10G \
             --latency 1ms --jitter 1ms --loss 0.0001% --seed 7 --downtime-limit 200ms --aim least-disturbance"
        );
        let (one, other) = (as_json(&line), as_json(&line));
        assert_eq!((&one, &one["completes"]), (&other, &json!(true)), "{one}");
        assert_ne!(one, as_json(&line.replace("--seed 7", "--seed 8")));
    }
    let refused = |line: &str| planned(line).expect_err("it cannot be");
    assert!(refused("--memory 1G").contains("--bandwidth"));
    assert!(refused("--bandwidth 1G").contains("--memory"));
    assert!(refused("--memory 1G --bandwidth 1G --zero 2G").contains("no more of it is zero"));
    assert!(refused("--memory 1G --bandwidth 1G --latency 9s").contains("5 s"));
    assert!(refused("--memory 1G --bandwidth 0").contains("more than 0"));
    assert!(refused("--memory 1G --bandwidth 1G --plot /dev/null/plan.svg").contains("--plot /dev/null/plan.svg"));
}

/// A migration of 256 MiB, half of it zero, at 100 MB/s, of which 2500 pages were sent again.
fn figures() -> Value {
    json!({
        "status": "completed",
        "total-time": 1400,
        "downtime": 30,
        "downtime-parts": {"pause": 4000, "sync": 1000, "pages": 9000, "devices": 2000, "confirm": 7000, "commit": 3000},
        "ram": {
            "total": 256 << 20, "duplicate": 32768, "normal": 32768 + 2500, "page-size": 4096, "mbps": 800.0,
            "dirty-pages-rate": 4000, "dirty-sync-count": 3, "transferred": 145_000_000,
        },
    })
}

#[test]
fn a_migration_that_was_is_planned_again() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("was.json");
    let from = |value: &Value| {
        fs::write(&file, value.to_string()).expect("a file");
        as_json(&format!("--from {}", file.display()))
    };
    let plan = from(&figures());
    assert_eq!(plan, from(&json!({"return": figures()})));
    assert_eq!(plan, from(&json!({"holds": true, "hops": [{"migration": {}}, {"migration": figures()}]})));
    let sum =
        |name: &str| plan["rounds"].as_array().unwrap().iter().map(|round| round[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("duplicate"), 32768);
    // Pages of the pause belong to no round.
    assert!((34_000..=35_300).contains(&sum("normal")), "{plan}");
    assert!(plan["guest"].as_str().unwrap().starts_with("256 MiB of memory, 128 MiB of it zero"), "{plan}");
    // 5 ms to stop, and 12 ms for devices and destination; the pages come on top.
    let downtime = plan["downtime"].as_f64().unwrap();
    assert!((17.0..60.0).contains(&downtime), "{plan}");

    // A guest that wrote all of its 128 MiB again and again, while each page was counted once a round.
    let mut busy = figures();
    busy["ram"]["normal"] = json!(3 * 32768);
    let again = from(&busy);
    assert!(again["transferred"].as_u64() > plan["transferred"].as_u64().map(|bytes| bytes * 2), "{again}");
    let plan = from(&figures());

    let line = |rest: &str| as_json(&format!("--from {} {rest}", file.display()));
    assert!(line("--bandwidth 8G")["total-time"].as_f64().unwrap() < plan["total-time"].as_f64().unwrap() / 2.0);
    assert!(line("--dirty-rate 0")["guest"].as_str().unwrap().ends_with("writes nothing"));

    fs::write(&file, "{}").expect("a file");
    let refused = |path: &std::path::Path| planned(&format!("--from {}", path.display())).expect_err("no plan");
    assert!(refused(&file).contains("no figures of a migration"));
    fs::write(&file, "no").expect("a file");
    assert!(refused(&file).contains("no JSON"));
    assert!(refused(&folder.path().join("gone")).contains("--from"));
}

#[test]
fn a_report_has_the_costs_of_a_migration_besides_its_pages() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("was.html");
    let mut figures = figures();
    (figures["total-time"], figures["setup-time"]) = (json!(2000), json!(100));
    let lasted = |duration: u64| json!({ "duration-us": duration });
    let data = json!({
        "figures": figures, "rounds": [lasted(1_346_000), lasted(80_000), lasted(20_000)],
        "parameters": {"max-bandwidth": 134_217_728, "downtime-limit": 100},
    });
    let page = format!("<html><script type=\"application/json\" id=\"data\">{data}</script></html>");
    fs::write(&file, page).expect("a file");
    let line = format!("--from {}", file.display());
    let plan = as_json(&line);
    let total = plan["total-time"].as_f64().expect("a time");
    assert!((1950.0..2050.0).contains(&total), "{plan}");
    assert_eq!(plan["downtime-limit"], 100.0);
    let text = planned(&line).expect("a plan").text;
    assert!(text.contains(", limited to 128 MiB/s\nbesides  "), "{text}");
    // On a wire ten times as fast the work besides pages takes as long as before.
    let wide = as_json(&format!("{line} --bandwidth 8G --max-bandwidth 0"))["total-time"].as_f64().expect("a time");
    assert!((total - wide - 0.9 * 1446.0).abs() < 50.0, "{total} {wide}");
}

#[test]
fn a_picture_is_drawn() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("plan.svg");
    for rest in ["", "--dirty-rate 500M/s", "--dirty-rate 500M/s --auto-converge", "--dirty-rate 500M/s --deadline 1ms"]
    {
        let line = format!("--memory 1G --bandwidth 2G {rest} --plot {}", file.display());
        let shown = planned(&line).expect("a plan");
        let picture = fs::read_to_string(&file).expect("a picture");
        let verdict = shown.text.lines().find_map(|line| line.strip_prefix("verdict  ")).expect("a verdict");
        assert!(
            picture.starts_with("<svg ") && picture.ends_with("</svg>\n") && picture.contains(verdict),
            "{picture}"
        );
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        assert_eq!(picture.contains(r#"class="throttle""#), rest.contains("--auto-converge"), "{picture}");
    }
}
