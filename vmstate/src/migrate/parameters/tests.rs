//! Every parameter is set and read back, and values out of range are refused.

use super::*;

fn set(name: &str, value: ParameterValue) -> Result<Parameters> {
    Parameters::default().changed([(name, value)])
}

#[test]
fn the_defaults_are_in_range_and_every_parameter_reads_back_what_was_set() {
    assert!(Parameters::default().check().is_ok());
    for parameter in PARAMETERS {
        let value = match parameter.unit {
            ParameterUnit::Milliseconds(most) => ParameterValue::Time(Duration::from_millis(most)),
            ParameterUnit::BytesPerSecond => ParameterValue::Number(1),
            ParameterUnit::Percent(most) => ParameterValue::Number(most.into()),
            ParameterUnit::Between(_, most) => ParameterValue::Number(most.into()),
            ParameterUnit::Count => ParameterValue::Number(7),
            ParameterUnit::CacheBytes => ParameterValue::Number(1 << 20),
            ParameterUnit::Flag | ParameterUnit::Switch => ParameterValue::Flag(true),
            ParameterUnit::Word(words) => ParameterValue::Word((*words.last().unwrap()).into()),
        };
        // `postcopy-preempt` requires it.
        let needs = (parameter.name == "postcopy-preempt").then(|| ("postcopy-ram", true.into()));
        let changed =
            Parameters::default().changed(needs.into_iter().chain([(parameter.name, value.clone())])).unwrap();
        assert_eq!(parameter.of(&changed), value, "{}", parameter.name);
        assert!(changed == Parameters::default() || parameter.of(&Parameters::default()) != value);
    }
}

#[test]
fn what_is_out_of_range_is_refused_by_its_name_and_nothing_changes() {
    for (name, value, expects) in [
        (
            "downtime-limit",
            ParameterValue::Time(Duration::from_millis(2_000_001)),
            "an integer in the range of 0 to 2000000",
        ),
        ("cpu-throttle-initial", ParameterValue::Number(0), "an integer in the range of 1 to 99"),
        ("cpu-throttle-increment", ParameterValue::Number(100), "an integer in the range of 1 to 99"),
        ("cpu-throttle-increment", ParameterValue::Number(256 + 9), "an integer in the range of 1 to 99"),
        ("throttle-trigger-threshold", ParameterValue::Number(101), "an integer in the range of 1 to 100"),
        ("max-cpu-throttle", ParameterValue::Number(100), "an integer in the range of 1 to 99"),
        ("max-rounds", ParameterValue::Number(1 << 32), "an integer in the range of 0 to 4294967295"),
        ("xbzrle-cache-size", ParameterValue::Number(2048), "a power of two, at least 4096"),
        ("xbzrle-cache-size", ParameterValue::Number(12288), "a power of two, at least 4096"),
        ("multifd-channels", ParameterValue::Number(0), "an integer in the range of 1 to 255"),
        ("multifd-zstd-level", ParameterValue::Number(21), "an integer in the range of 1 to 20"),
        ("multifd-compression", ParameterValue::Word("zlib".into()), "one of: none, zstd"),
        ("max-bandwidth", ParameterValue::Flag(true), "an integer in the range of 0 to 18446744073709551615"),
        ("auto-converge", ParameterValue::Number(1), "true or false"),
        ("direct-io", ParameterValue::Number(1), "true or false"),
        ("aim", ParameterValue::Word("fast".into()), "one of: soonest, least-disturbance"),
    ] {
        let refusal = set(name, value).unwrap_err();
        assert_eq!(refusal.message(), format!("Parameter '{name}' expects {expects}"));
    }
    assert_eq!(set("speed", ParameterValue::Number(1)).unwrap_err().message(), "Parameter 'speed' is unexpected");
    let refusal = set("max-cpu-throttle", ParameterValue::Number(19)).unwrap_err();
    assert!(refusal.message().contains("'max-cpu-throttle' expects an integer in the range of 20"), "{refusal}");
    let refusal = Parameters::default().changed([("multifd", true.into()), ("xbzrle", true.into())]).unwrap_err();
    assert_eq!(refusal.message(), "Multifd is not compatible with xbzrle: switch one of them off");
    let refusal = set("postcopy-preempt", true.into()).unwrap_err();
    assert_eq!(refusal.message(), "Postcopy preempt requires postcopy-ram: switch that on, too");
    // Changed together, they are compatible.
    let both = [("max-cpu-throttle", ParameterValue::Number(19)), ("cpu-throttle-initial", ParameterValue::Number(19))];
    assert_eq!(Parameters::default().changed(both).unwrap().max_cpu_throttle, 19);
}
