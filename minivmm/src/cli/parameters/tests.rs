//! Every parameter has an option, which takes the units that people write and refuses what is out of range.

use clap::{CommandFactory, Parser};

use super::*;

#[derive(Debug, Parser)]
struct Both {
    #[command(flatten)]
    sending: SendingArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

fn changes(line: &[&str]) -> Result<Vec<(&'static str, ParameterValue)>, String> {
    let both = Both::try_parse_from(std::iter::once(&"test").chain(line)).map_err(|error| error.to_string())?;
    Ok(both.sending.changes().chain(both.policy.changes()).collect())
}

fn change(line: &[&str]) -> ParameterValue {
    let [(name, value)] = changes(line).unwrap().try_into().unwrap();
    assert!(line[0].split('=').next() == Some(&format!("--{name}")), "{line:?} sets {name}");
    value
}

const fn ms(ms: u64) -> ParameterValue {
    ParameterValue::Time(Duration::from_millis(ms))
}

#[test]
fn an_option_takes_the_units_that_people_write() {
    let number = ParameterValue::Number;
    let word = |word: &'static str| ParameterValue::Word(word.into());
    for (line, expected) in [
        (&["--downtime-limit", "200ms"][..], ms(200)),
        (&["--downtime-limit=200"], ms(200)),
        (&["--pause-budget", "2s"], ms(2_000)),
        (&["--deadline", "5min"], ms(300_000)),
        (&["--deadline", "1h"], ms(3_600_000)),
        (&["--deadline-action", "switch-over"], word("switch-over")),
        (&["--aim", "least-disturbance"], word("least-disturbance")),
        (&["--max-bandwidth", "1G"], number(1 << 30)),
        (&["--max-bandwidth", "50M/s"], number(50 << 20)),
        (&["--avail-switchover-bandwidth", "0"], number(0)),
        (&["--auto-converge"], ParameterValue::Flag(true)),
        (&["--auto-converge=off"], ParameterValue::Flag(false)),
        (&["--throttle-trigger-threshold", "100%"], number(100)),
        (&["--cpu-throttle-initial", "1"], number(1)),
        (&["--cpu-throttle-increment", "99"], number(99)),
        (&["--max-cpu-throttle", "80%"], number(80)),
        (&["--max-rounds", "30"], number(30)),
        (&["--multifd"], ParameterValue::Flag(true)),
        (&["--multifd-channels", "255"], number(255)),
        (&["--multifd-compression", "zstd"], word("zstd")),
        (&["--multifd-zstd-level", "20"], number(20)),
        (&["--direct-io"], ParameterValue::Flag(true)),
        (&["--direct-io=off"], ParameterValue::Flag(false)),
        (&["--xbzrle"], ParameterValue::Flag(true)),
        (&["--xbzrle=off"], ParameterValue::Flag(false)),
        (&["--xbzrle-cache-size", "1G"], number(1 << 30)),
    ] {
        assert_eq!(change(line), expected, "{line:?}");
    }
}

#[test]
fn an_option_may_set_two_parameters() {
    let given = |line: &[&str]| format!("{:?}", changes(line).unwrap());
    let (flag, number) = (ParameterValue::Flag, ParameterValue::Number);
    let zstd =
        |level| [("multifd-compression", ParameterValue::Word("zstd".into())), ("multifd-zstd-level", number(level))];
    let channels = [("multifd", flag(true)), ("multifd-channels", number(4))];
    assert_eq!(changes(&["--channels", "4"]).unwrap(), channels);
    for (compress, level) in [("zstd", 1), ("zstd:20", 20)] {
        assert_eq!(changes(&["--channels=4", "--compress", compress]).unwrap(), [&channels[..], &zstd(level)].concat());
    }
    assert!(given(&["--channels", "4", "--compress", "none"]).ends_with(r#"("multifd-compression", Word("none"))]"#));
    assert_eq!(
        changes(&["--multifd", "--compress", "zstd:3"]).unwrap(),
        [&[("multifd", flag(true))][..], &zstd(3)].concat()
    );
    let refusal = changes(&["--compress", "zstd"]).unwrap_err();
    assert!(refusal.contains("--channels <N>") && refusal.contains("--multifd"), "{refusal}");
    assert_eq!(changes(&["--xbzrle=1M"]).unwrap(), [("xbzrle", flag(true)), ("xbzrle-cache-size", number(1 << 20))]);
    for (line, name) in [
        (&["--channels", "4", "--multifd-channels", "4"][..], "multifd-channels"),
        (&["--channels", "4", "--multifd=off"], "multifd"),
        (&["--xbzrle=1M", "--xbzrle-cache-size", "2M"], "xbzrle-cache-size"),
    ] {
        let refusal = changes(line).unwrap_err();
        let why = format!("error: two options set the parameter '{name}'; leave one out\n");
        assert!(refusal.starts_with(&why), "{line:?}: {refusal}");
    }
}

#[test]
fn what_is_out_of_range_is_refused_by_name_with_the_range() {
    for (line, why) in [
        (
            &["--downtime-limit", "2001s"][..],
            "invalid value '2001s' for '--downtime-limit <TIME>': expected a time of 0 to 2000s, as 300ms, 2s, 5min or 1h",
        ),
        (&["--downtime-limit", "1.5s"], "expected a time of 0 to 2000s, as 300ms, 2s, 5min or 1h"),
        (&["--downtime-limit", "3d"], "expected a time of 0 to 2000s, as 300ms, 2s, 5min or 1h"),
        (&["--downtime-limit", "ms"], "expected a time of 0 to 2000s, as 300ms, 2s, 5min or 1h"),
        (&["--deadline", "99999999999999h"], "expected a time of 0 to 18446744073709ms, as 300ms, 2s, 5min or 1h"),
        (
            &["--max-bandwidth", "fast"],
            "'--max-bandwidth <SIZE>': expected bytes a second, or K, M or G of them, as 50M",
        ),
        (&["--max-bandwidth", "-1"], "'--max-bandwidth <SIZE>': expected bytes a second, or K, M or G of them, as 50M"),
        (&["--cpu-throttle-initial", "0"], "'--cpu-throttle-initial <PERCENT>': expected percent, 1 to 99"),
        (&["--throttle-trigger-threshold", "101%"], "expected percent, 1 to 100"),
        (&["--max-rounds", "4294967296"], "'--max-rounds <N>': expected a number, 0 to 4294967295"),
        (&["--max-rounds", "+1"], "'--max-rounds <N>': expected a number, 0 to 4294967295"),
        (&["--multifd-channels", "256"], "expected a number, 1 to 255"),
        (&["--channels", "0"], "'--channels <N>': expected a number, 1 to 255"),
        (&["--channels=1", "--compress", "none:1"], "expected none, zstd or zstd:LEVEL, with a level of 1 to 20"),
        (&["--channels=1", "--compress", "zstd:21"], "expected none, zstd or zstd:LEVEL, with a level of 1 to 20"),
        (&["--channels=1", "--compress", "zlib"], "expected none, zstd or zstd:LEVEL, with a level of 1 to 20"),
        (&["--xbzrle=3M"], "expected bytes, or K, M or G of them, as 64M: a power of two of at least 4K"),
        (&["--xbzrle-cache-size", "2K"], "expected bytes, or K, M or G of them, as 64M: a power of two of at least 4K"),
        (&["--auto-converge=1"], "'--auto-converge[=<on|off>]': expected on or off"),
        (&["--aim", "fast"], "'--aim <WORD>': expected soonest or least-disturbance"),
        (&["--deadline-action", "stop"], "expected cancel or switch-over or throttle"),
    ] {
        let refusal = changes(line).unwrap_err();
        assert!(refusal.contains(why), "{line:?}: {refusal}");
    }
}

/// The help lists each option with unit, range and minivmm's default.
#[test]
fn the_help_has_every_parameter_with_unit_and_default() {
    let help = Both::command().term_width(200).render_help().to_string();
    for parameter in PARAMETERS {
        assert!(help.contains(&format!("--{} ", parameter.name)) || help.contains(&format!("--{}[=", parameter.name)));
    }
    for (option, text) in [
        ("--downtime-limit <TIME>", "[a time of 0 to 2000s, as 300ms, 2s, 5min or 1h; default: 300ms]"),
        ("--pause-budget <TIME>", "default: 1200ms]"),
        ("--max-bandwidth <SIZE>", "[bytes a second, or K, M or G of them, as 50M; default: 128M]"),
        ("--aim <WORD>", "[soonest or least-disturbance; default: soonest]"),
        ("--auto-converge[=<on|off>]", "[on or off; default: off]"),
        ("--throttle-trigger-threshold <PERCENT>", "[percent, 1 to 100; default: 50]"),
        ("--deadline <TIME>", "default: 0]"),
        ("--max-rounds <N>", "[a number, 0 to 4294967295; default: 0]"),
        ("--xbzrle-cache-size <SIZE>", "default: 64M]"),
    ] {
        let (_, line) = help.split_once(option).unwrap_or_else(|| panic!("no {option} in\n{help}"));
        let line = line.split("  --").next().unwrap();
        assert!(line.contains(text), "{option}: {line}");
    }
}
