//! `minivmm migrate --report`: the page of a real migration, as a file and as a browser shows it.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Running, TIMEOUT, machine, migrate, minivmm};
use minivmm::vm::Published;
use vmstate::migrate::SourcePhase;

/// Returns the JSON at the end of a page.
fn data(page: &str) -> Value {
    let (_, json) = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    serde_json::from_str(json.split_once("</script>").unwrap().0).unwrap()
}

/// Returns each `data` element: its value, its path in the JSON, and its text.
fn numbers(page: &str) -> Vec<(String, String, String)> {
    let elements = page.split("<data value=\"").skip(1);
    let parsed = elements.map(|element| {
        let (value, rest) = element.split_once("\" title=\"").unwrap();
        let (place, rest) = rest.split_once("\">").unwrap();
        (value.into(), place.into(), rest.split_once("</data>").unwrap().0.into())
    });
    parsed.collect()
}

/// Every number is that of the JSON, and its text is the number in the text's unit.
fn check(page: &str) -> usize {
    let data = data(page);
    let numbers = numbers(page);
    for (value, place, shown) in &numbers {
        let exact = data.pointer(place).unwrap_or_else(|| panic!("{place} is not in the JSON"));
        assert_eq!(exact.to_string(), *value, "{place}");
        let (number, unit) = shown.split_once(' ').unwrap_or((shown, ""));
        let number: f64 = number.parse().unwrap();
        let scale = match unit {
            "" | "B" | "%" => 1.0,
            "KiB" => 1024.0,
            "MiB" => 1024.0 * 1024.0,
            "GiB" => 1024.0 * 1024.0 * 1024.0,
            _ => {
                let in_microseconds = match unit {
                    "µs" => 1.0,
                    "ms" => 1e3,
                    "s" => 1e6,
                    other => panic!("{place}: {other}"),
                };
                if place.ends_with("-ns") {
                    in_microseconds * 1e3
                } else if place.ends_with("-us") || place.contains("-parts/") {
                    in_microseconds
                } else {
                    in_microseconds / 1e3
                }
            }
        };
        let (shown, exact) = (number * scale, exact.as_f64().unwrap());
        // At least two digits are shown: rounding changes a twentieth at most.
        let rounding = (0.05 * exact).max(0.051 * scale);
        assert!((shown - exact).abs() <= rounding, "{place}: {shown} for {exact}");
    }
    numbers.len()
}

/// The page loads nothing; its only URL is the name of SVG's elements.
fn stands_alone(page: &str) {
    let page = page.replace("http://www.w3.org/2000/svg", "");
    for asks in ["http:", "https:", " src=", "url(", "@import", "<iframe", "<object", "onload", "javascript:"] {
        assert!(!page.contains(asks), "{asks}");
    }
    assert_eq!(page.matches("<script").count(), 1, "only the data");
}

#[test]
fn a_report_shows_the_figures_of_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let (incoming_socket, page) =
        (format!("unix:{}/incoming", folder.path().display()), folder.path().join("report.html"));
    let there = ["--serial", "none", "--incoming", &incoming_socket];
    let Some(there) = Running::start(&there, Stdio::null()) else { return };
    let mut arrived = there.control();
    let here = Running::start(&["--serial", "none"], Stdio::null()).unwrap();
    let mut control = here.control();
    let address = format!("unix:{}/qmp", here.directory.path().display());
    let limit = format!("{}s", TIMEOUT.as_secs());
    let options = ["--downtime-limit", &limit, "--report", page.to_str().unwrap(), &incoming_socket];
    let output = minivmm(&[&["migrate", "--control", &address], &options[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = std::fs::read_to_string(&page).unwrap();
    stands_alone(&text);
    // More numbers than those of cards, rounds, parts and devices, such as the size of a square.
    assert!(check(&text) > 7 + 5 + 6 + 2 * 8, "{text}");
    let told = data(&text);
    assert_eq!(told["figures"], control.execute("query-migrate", json!({})).unwrap());
    assert_eq!(told["rounds"], control.execute("query-migrate-rounds", json!({})).unwrap());
    assert_eq!(
        told["rounds"].as_array().unwrap().len() as u64,
        told["figures"]["ram"]["dirty-sync-count"].as_u64().unwrap()
    );
    let sent: u64 = told["rounds"].as_array().unwrap().iter().map(|round| round["bytes"].as_u64().unwrap()).sum();
    assert!(sent > 0 && sent <= told["figures"]["ram"]["transferred"].as_u64().unwrap(), "{sent}");
    for (member, query) in [("sections", "query-migrate-sections"), ("heat", "query-migrate-heat")] {
        assert_eq!(told[member], control.execute(query, json!({})).unwrap());
    }
    devices_saved(&told);
    devices_loaded(&told, &arrived.execute("query-migrate-sections", json!({})).unwrap());
    memory_sent(&told);
    browser_agrees(&page, &text);
    text_is_readable_in_the_dark(folder.path(), &text);
}

/// Disks whose content was sent have a card of their own, and only they.
#[test]
fn a_report_shows_what_was_sent_of_copied_disks() {
    let mut record =
        json!({ "to": "unix:there", "end": "completed", "figures": { "ram": { "transferred": 5 << 20 } } });
    let places = |record: &Value| {
        let page = minivmm::cli::report::page(std::slice::from_ref(record));
        check(&page);
        numbers(&page).into_iter().map(|(_, place, shown)| (place, shown)).collect::<Vec<_>>()
    };
    let sent = ("/figures/ram/transferred".to_owned(), "5 MiB".to_owned());
    assert_eq!(places(&record), std::slice::from_ref(&sent));
    record["figures"]["disk"] = json!({ "total": 2_u64 << 30, "transferred": 3 << 20, "remaining": 0 });
    let of_disks = [("/figures/disk/transferred", "3 MiB"), ("/figures/disk/total", "2 GiB")];
    let of_disks = of_disks.map(|(place, shown)| (place.to_owned(), shown.to_owned()));
    assert_eq!(places(&record), [&[sent][..], &of_disks].concat());
}

/// Lists the sections of a machine without disk and card, with plausible times.
fn devices_saved(told: &Value) {
    let sections = told["sections"].as_array().unwrap();
    let names: Vec<_> = sections.iter().map(|section| section["section"].as_str().unwrap()).collect();
    for name in ["timer", "cpu_common", "cpu", "apic", "kvmclock", "serial"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(sections.iter().all(|section| section["bytes"].as_u64() > Some(0)), "{sections:?}");
    let took: u64 = sections.iter().map(|section| section["save-ns"].as_u64().unwrap()).sum();
    let devices = told["figures"]["downtime-parts"]["devices"].as_u64().unwrap();
    assert!(took > 0 && took / 1000 <= devices, "{took} ns of {devices} µs");
}

/// The source reports for each section what the destination reports.
fn devices_loaded(told: &Value, there: &Value) {
    let (sections, there) = (told["sections"].as_array().unwrap(), there.as_array().unwrap());
    assert_eq!(sections.len(), there.len(), "{there:?}");
    for (section, loaded) in sections.iter().zip(there) {
        for member in ["section", "instance", "bytes", "load-ns"] {
            assert_eq!(section[member], loaded[member], "{section}");
        }
        assert!(loaded.get("save-ns").is_none(), "{loaded}");
    }
    let took: u64 = there.iter().map(|section| section["load-ns"].as_u64().unwrap()).sum();
    let figures = &told["figures"];
    let machine = figures["takeover-parts"]["machine"].as_u64().unwrap();
    // The source waits for loading, for setting the machine's state, and for the last pages.
    let confirm =
        figures["downtime-parts"]["confirm"].as_u64().unwrap() + figures["downtime-parts"]["devices"].as_u64().unwrap();
    assert!(took > 0 && took / 1000 + machine <= confirm, "{took} ns and {machine} µs of {confirm} µs");
}

/// Every page was sent at least once, and no part more often than all pages together.
fn memory_sent(told: &Value) {
    let (heat, ram) = (&told["heat"], &told["figures"]["ram"]);
    let cell_pages = heat["cell-bytes"].as_u64().unwrap() / 4096;
    let cells: Vec<_> = heat["pages"].as_array().unwrap().iter().map(|pages| pages.as_u64().unwrap()).collect();
    let pages = ram["total"].as_u64().unwrap() / 4096;
    assert_eq!(cells.len() as u64, pages.div_ceil(cell_pages));
    for (first, sent) in (0..pages).step_by(cell_pages as usize).zip(&cells) {
        assert!(*sent >= cell_pages.min(pages - first), "{first}: {cells:?}");
    }
    let sent = ram["normal"].as_u64().unwrap() + ram["duplicate"].as_u64().unwrap();
    assert_eq!(cells.iter().sum::<u64>(), sent);
}

/// Chromium shows every number as it is in the file, and reports no error.
fn browser_agrees(page: &Path, text: &str) {
    let Some(dom) = shown(page, &[]) else { return };
    assert_eq!(numbers(&dom), numbers(text));
    assert_eq!(dom.matches("<svg").count(), text.matches("<svg").count());
}

/// Script that makes the browser print, after the page, the colour scheme and the colours of the background and of each text. A
/// picture's `title` is displayed by the browser itself.
/// shown by the browser itself.
const COLOURS: &str = "<script>
  const texts = [...document.body.querySelectorAll('*')].filter(element => !['SCRIPT', 'title'].includes(element.tagName) &&
    [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  const colours = texts.map(element => getComputedStyle(element)[element instanceof SVGElement ? 'fill' : 'color']);
  const scheme = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
  const all = [getComputedStyle(document.body).backgroundColor, ...new Set(colours)];
  document.body.append(`[[${scheme};${all.join(';')}]]`);
</script>";

/// With a dark colour scheme the page is dark, and each text has the contrast that WCAG 2 asks for (1.4.3, level AA).
fn text_is_readable_in_the_dark(folder: &Path, text: &str) {
    // The page itself forbids scripts.
    let open = text.replace("default-src 'none'", "script-src 'unsafe-inline'");
    let page = folder.join("dark.html");
    std::fs::write(&page, open.replace("</body>", &format!("{COLOURS}</body>"))).unwrap();
    let Some(dom) = shown(&page, &["--blink-settings=preferredColorScheme=0"]) else { return };
    let (_, said) = dom.rsplit_once("[[").unwrap();
    let mut said = said.split_once("]]").unwrap().0.split(';');
    assert_eq!(said.next(), Some("dark"));
    let mut luminances = said.map(|colour| (colour, luminance(colour)));
    let (_, background) = luminances.next().unwrap();
    let texts: Vec<_> = luminances.collect();
    assert!(background < 0.05 && texts.len() > 2, "{background}: {texts:?}");
    for (colour, luminance) in texts {
        let contrast = (luminance.max(background) + 0.05) / (luminance.min(background) + 0.05);
        assert!(contrast >= 4.5, "{colour}: {contrast}");
    }
}

/// Relative luminance of `rgb(R, G, B)` (WCAG 2, section 3).
fn luminance(colour: &str) -> f64 {
    let numbers = colour.strip_prefix("rgb(").and_then(|rest| rest.strip_suffix(')'));
    let linear = numbers.unwrap_or_else(|| panic!("{colour}")).split(", ").map(|number| {
        let part = number.parse::<f64>().unwrap() / 255.0;
        if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    });
    linear.zip([0.2126, 0.7152, 0.0722]).map(|(part, weight)| part * weight).sum()
}

/// Returns the document that Chromium makes of the page, which must not cause errors. `None` without Chromium.
fn shown(page: &Path, more: &[&str]) -> Option<String> {
    let profile = tempfile::tempdir().unwrap();
    let shown = Command::new("timeout")
        .args([TIMEOUT.as_secs().to_string().as_str(), "chromium"])
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0", "--dump-dom"])
        .args(more)
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output();
    let shown = shown.unwrap();
    // Exit code of coreutils' timeout without such a program.
    if shown.status.code() == Some(127) {
        vmstate_lab::skip::skip("chromium is missing: apt-get install chromium");
        return None;
    }
    let log = String::from_utf8_lossy(&shown.stderr);
    assert!(!log.contains("CONSOLE"), "{log}");
    Some(String::from_utf8(shown.stdout).unwrap())
}

/// A message of the machine, which may come from a peer, is text in the page, and no element.
#[test]
fn a_failure_is_reported_and_its_text_is_escaped() {
    fn script(shared: &Published) {
        super::ends(shared, SourcePhase::Failed, Some("</script><script>alert(1)</script><img src=x>"));
    }
    let (directory, _server, _requests) = machine(script);
    let page = directory.path().join("report.html");
    let output = migrate(directory.path()).args(["--report", page.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = std::fs::read_to_string(&page).unwrap();
    assert_eq!((text.matches("<script").count(), text.matches("<img").count()), (1, 0), "{text}");
    check(&text);
    assert!(data(&text)["end"].as_str().unwrap().contains("</script>"), "{text}");

    let output = migrate(directory.path()).args(["--report", "/nowhere/report.html"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("minivmm: --report /nowhere/report.html: No such file"), "{text}");
}
