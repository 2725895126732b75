//! Commands about the protocol itself: negotiation with a client, and the lists of commands.

use serde_json::{Value, json};

use crate::control::kind::{Kind, Shape, needed, optional};
use crate::control::report;
use crate::control::schema::SCHEMA;
use crate::control::table::{COMMANDS, Command};

/// Capability of the protocol that the greeting offers: out-of-band execution.
pub(super) const OUT_OF_BAND: &str = "oob";

/// Rows of the command table.
pub(super) fn commands() -> Vec<Command> {
    let (text, name) = (|| Kind::Text, || needed("name", Kind::Text));
    let version = ["major", "minor", "micro"].map(|part| needed(part, Kind::Integer));
    let version = [needed("qemu", Kind::object(version)), needed("package", Kind::Text)];
    vec![
        Command::new(
            "qmp_capabilities",
            "the first command, given once; before it every other command is refused. `enable` may hold `oob`, for [`exec-oob`](#out-of-band)",
            |_, _| Ok(json!({})),
        )
        .takes([optional("enable", Kind::list(Kind::word([OUT_OF_BAND])))]),
        Command::new("query-version", "the release of QEMU whose protocol minivmm follows, and the release of minivmm", |_, _| {
            Ok(report::version())
        })
        .gives(Kind::object(version)),
        Command::new("query-commands", "the names of all commands", |_, _| {
            Ok(COMMANDS.iter().map(|command| json!({"name": command.name})).collect())
        })
        .gives(Kind::list(Kind::object([name()]))),
        Command::new("query-qmp-schema", "this table, in QEMU's format for programs", |_, _| Ok(Value::clone(&SCHEMA)))
            .gives(Kind::list(Kind::Object(
                Shape::by(
                    "meta-type",
                    [
                        (
                            "builtin",
                            Shape::of([needed(
                                "json-type",
                                Kind::word(["string", "number", "int", "boolean", "null", "object", "array", "value"]),
                            )]),
                        ),
                        (
                            "enum",
                            Shape::of([
                                needed("members", Kind::list(Kind::object([name()]))),
                                needed("values", Kind::list(text())),
                            ]),
                        ),
                        ("array", Shape::of([needed("element-type", text())])),
                        (
                            "object",
                            Shape::of([
                                needed(
                                    "members",
                                    Kind::list(Kind::object([
                                        name(),
                                        needed("type", text()),
                                        optional("default", Kind::Any),
                                    ])),
                                ),
                                optional("tag", text()),
                                optional(
                                    "variants",
                                    Kind::list(Kind::object([needed("case", text()), needed("type", text())])),
                                ),
                            ]),
                        ),
                        (
                            "alternate",
                            Shape::of([needed("members", Kind::list(Kind::object([needed("type", text())])))]),
                        ),
                        (
                            "command",
                            Shape::of([
                                needed("arg-type", text()),
                                needed("ret-type", text()),
                                optional("allow-oob", Kind::Switch),
                            ]),
                        ),
                        ("event", Shape::of([needed("arg-type", text())])),
                    ],
                )
                .and([name()]),
            ))),
    ]
}
