//! The migration parameter `block-bitmap-mapping`: names under which dirty bitmaps migrate.

use serde_json::{Map, Value, json};

use crate::control::commands::Failure;
use crate::control::kind::{Kind, Member, needed, optional};
use crate::migration::bitmaps::{BitmapAlias, BitmapMapping, NodeAlias};

/// Name of the parameter.
pub(super) const NAME: &str = "block-bitmap-mapping";

/// The parameter, in `migrate-set-parameters` and `query-migrate-parameters`.
pub(super) fn parameter() -> Member {
    let bitmap = Kind::object([
        needed("name", Kind::Text),
        needed("alias", Kind::Text),
        optional("transform", Kind::object([optional("persistent", Kind::Switch)])),
    ]);
    let node = Kind::object([
        needed("node-name", Kind::Text),
        needed("alias", Kind::Text),
        needed("bitmaps", Kind::list(bitmap)),
    ]);
    optional(NAME, Kind::list(node))
}

/// Takes the mapping out of `members`, if it is given.
///
/// # Errors
/// The mapping is not valid.
pub(super) fn take(members: &mut Map<String, Value>) -> Result<Option<BitmapMapping>, Failure> {
    let Some(given) = members.shift_remove(NAME) else { return Ok(None) };
    let text = |object: &Value, name: &str| object[name].as_str().unwrap_or_default().to_owned();
    let all = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let bitmap = |given: Value| BitmapAlias {
        name: text(&given, "name"),
        alias: text(&given, "alias"),
        persistent: given["transform"]["persistent"].as_bool(),
    };
    let node = |given: Value| NodeAlias {
        node: text(&given, "node-name"),
        alias: text(&given, "alias"),
        bitmaps: all(&given["bitmaps"]).into_iter().map(bitmap).collect(),
    };
    let mapping = BitmapMapping::new(all(&given).into_iter().map(node).collect());
    // QEMU's message (`migrate_params_check`, migration/options.c).
    let invalid = |error| Failure::generic(format!("Invalid mapping given for {NAME}: {error}"));
    mapping.map(Some).map_err(invalid)
}

/// Prints the mapping as QEMU's monitor for people does (`hmp_info_migrate_parameters`, migration/migration-hmp-cmds.c).
pub(super) fn printed(shown: &Value) -> String {
    let text = |object: &Value, name: &str| object[name].as_str().unwrap_or_default().to_owned();
    let bitmap = |one: &Value| format!("    '{}' -> '{}'\r\n", text(one, "name"), text(one, "alias"));
    let node = |one: &Value| {
        let bitmaps: String = one["bitmaps"].as_array().into_iter().flatten().map(bitmap).collect();
        format!("  '{}' -> '{}'\r\n{bitmaps}", text(one, "node-name"), text(one, "alias"))
    };
    let nodes: String = shown.as_array().into_iter().flatten().map(node).collect();
    format!("{NAME}:\r\n{nodes}")
}

/// Adds the mapping to `members`, if one was set.
pub(super) fn show(mapping: Option<&BitmapMapping>, members: &mut Value) {
    let bitmap = |BitmapAlias { name, alias, persistent }: &BitmapAlias| {
        let mut shown = json!({"name": name, "alias": alias});
        if let Some(persistent) = persistent {
            shown["transform"] = json!({"persistent": persistent});
        }
        shown
    };
    let node = |NodeAlias { node, alias, bitmaps }: &NodeAlias| {
        let bitmaps: Value = bitmaps.iter().map(bitmap).collect();
        json!({"node-name": node, "alias": alias, "bitmaps": bitmaps})
    };
    if let Some(mapping) = mapping {
        members[NAME] = mapping.nodes().iter().map(node).collect();
    }
}
