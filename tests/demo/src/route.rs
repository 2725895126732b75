//! The route of a demo's guest: the monitors that run it, one after the other.

use std::fmt;
use std::str::FromStr;

/// Largest number of monitors of one kind in a row.
const MOST: usize = 100;

/// The kind of a monitor on the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Monitor {
    Minivmm,
    Qemu,
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minivmm => "minivmm",
            Self::Qemu => "qemu",
        })
    }
}

/// A route: the guest boots in the first monitor, and migrates from each to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) first: Monitor,
    /// The further monitors, at least one.
    pub(crate) then: Vec<Monitor>,
}

impl Route {
    pub(crate) fn has(&self, monitor: Monitor) -> bool {
        self.first == monitor || self.then.contains(&monitor)
    }
}

impl FromStr for Route {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let monitor = |word: &str| match word {
            "minivmm" => Ok(Monitor::Minivmm),
            "qemu" => Ok(Monitor::Qemu),
            _ => Err(format!("no monitor is called `{word}`: a route is a list of `minivmm` and `qemu`")),
        };
        let mut monitors = Vec::new();
        for word in list.split(',') {
            let (word, times) = word.split_once('*').unwrap_or((word, "1"));
            let in_a_row = times.parse().ok().filter(|times| (1..=MOST).contains(times));
            let in_a_row = in_a_row.ok_or_else(|| format!("`{word}*{times}`: give a number from 1 to {MOST}"))?;
            monitors.extend(vec![monitor(word)?; in_a_row]);
        }
        match monitors.split_first() {
            Some((&first, then @ [_, ..])) => Ok(Self { first, then: then.to_vec() }),
            _ => Err(format!("a route has at least two monitors, as in `{list},{list}`")),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.then.iter().try_for_each(|monitor| write!(f, ",{monitor}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_written_in_order() {
        use Monitor::{Minivmm, Qemu};
        let route: Route = "qemu,minivmm,minivmm,qemu".parse().unwrap();
        assert_eq!(route, Route { first: Qemu, then: vec![Minivmm, Minivmm, Qemu] });
        assert_eq!(route.to_string(), "qemu,minivmm,minivmm,qemu");
        assert!(route.has(Qemu) && !"minivmm,minivmm".parse::<Route>().unwrap().has(Qemu));
    }

    #[test]
    fn a_monitor_may_follow_one_of_its_kind() {
        let route: Route = "minivmm*3,qemu*2".parse().unwrap();
        assert_eq!(route.to_string(), "minivmm,minivmm,minivmm,qemu,qemu");
        for list in ["minivmm*0", "minivmm*101", "minivmm*", "minivmm*x"] {
            let refusal = list.parse::<Route>().unwrap_err();
            assert_eq!(refusal, format!("`{list}`: give a number from 1 to 100"));
        }
    }

    #[test]
    fn an_invalid_route_is_refused_with_what_to_write() {
        let refusal = |list: &str| list.parse::<Route>().unwrap_err();
        assert_eq!(refusal("qemu"), "a route has at least two monitors, as in `qemu,qemu`");
        for (list, word) in [("qemu,xen", "`xen`"), ("", "``"), ("qemu,", "``"), ("QEMU,minivmm", "`QEMU`")] {
            assert!(refusal(list).starts_with(&format!("no monitor is called {word}: ")), "{list}");
        }
    }
}
