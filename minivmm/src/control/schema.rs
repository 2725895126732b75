//! Generates the answer to `query-qmp-schema` from the table of commands and events.
//!
//! Facts: QEMU's `docs/devel/qapi-code-gen.rst`, "Client JSON Protocol introspection". Built-in types have names. Other types
//! have numbers as names; a list has the name of its element in brackets. Equal types have one name.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::control::kind::{Choice, Kind, Shape};
use crate::control::table::{COMMANDS, EVENTS};

/// The whole schema, which never changes.
pub(super) static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut types = Types::default();
    let mut entities = Vec::new();
    for command in COMMANDS.iter() {
        let mut entity = json!({
            "name": command.name,
            "meta-type": "command",
            "arg-type": types.object(&command.arguments),
            "ret-type": types.name(&command.reply),
        });
        if command.out_of_band {
            entity["allow-oob"] = true.into();
        }
        entities.push(entity);
    }
    for event in EVENTS.iter() {
        entities.push(json!({"name": event.name, "meta-type": "event", "arg-type": types.object(&event.data)}));
    }
    entities.extend(types.entities);
    entities.into()
});

/// Types that were described, by name.
#[derive(Default)]
struct Types {
    numbered: Vec<Kind>,
    listed: Vec<Value>,
    entities: Vec<Value>,
}

impl Types {
    /// Returns the name of `kind`, and describes it if that was not done yet.
    fn name(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Text => self.builtin("str", "string"),
            Kind::Integer | Kind::Size => self.builtin("int", "int"),
            Kind::Number => self.builtin("number", "number"),
            Kind::Switch => self.builtin("bool", "boolean"),
            Kind::Any => self.builtin("any", "value"),
            Kind::List(of) => {
                let element = self.name(of);
                let name = Value::from(format!("[{}]", element.as_str().unwrap_or_default()));
                self.once(json!({"name": name, "meta-type": "array", "element-type": element}));
                name
            }
            Kind::Object(shape) => self.object(shape),
            Kind::TextOrNull | Kind::TextOrObject(..) | Kind::SwitchOrTexts(_) => match self.number(kind) {
                (name, false) => name,
                (name, true) => {
                    let text = self.name(&Kind::Text);
                    let members = match kind {
                        Kind::TextOrObject(_, shape) => [text, self.object(shape)],
                        Kind::SwitchOrTexts(_) => [self.name(&Kind::Switch), self.name(&Kind::list(Kind::Text))],
                        _ => [text, self.builtin("null", "null")],
                    };
                    let members: Value = members.into_iter().map(|name| json!({"type": name})).collect();
                    self.entities.push(json!({"name": name, "meta-type": "alternate", "members": members}));
                    name
                }
            },
            Kind::Word(words) => match self.number(kind) {
                (name, false) => name,
                (name, true) => {
                    let members: Value = words.iter().map(|word| json!({"name": word})).collect();
                    self.entities.push(json!({
                        "name": name, "meta-type": "enum", "members": members, "values": words,
                    }));
                    name
                }
            },
        }
    }

    fn object(&mut self, shape: &Shape) -> Value {
        let (name, new) = self.number(&Kind::Object(shape.clone()));
        if !new {
            return name;
        }
        let members = shape.members.iter().map(|member| {
            let mut entity = json!({"name": member.name, "type": self.name(&member.kind)});
            if !member.needed {
                entity["default"] = Value::Null;
            }
            entity
        });
        let members: Value = members.collect();
        let mut entity = json!({"name": name, "meta-type": "object", "members": members});
        if let Some(Choice { tag, cases }) = shape.choice.as_deref() {
            entity["tag"] = (*tag).into();
            entity["variants"] =
                cases.iter().map(|(case, shape)| json!({"case": case, "type": self.object(shape)})).collect();
        }
        self.entities.push(entity);
        name
    }

    /// Returns the number of `kind`, and whether it is new.
    fn number(&mut self, kind: &Kind) -> (Value, bool) {
        let known = self.numbered.iter().position(|other| other == kind);
        let index = known.unwrap_or_else(|| {
            self.numbered.push(kind.clone());
            self.numbered.len() - 1
        });
        (index.to_string().into(), known.is_none())
    }

    fn builtin(&mut self, name: &str, json_type: &str) -> Value {
        self.once(json!({"name": name, "meta-type": "builtin", "json-type": json_type}));
        name.into()
    }

    /// Describes a type without a number, unless it is described already.
    fn once(&mut self, entity: Value) {
        if !self.listed.contains(&entity["name"]) {
            self.listed.push(entity["name"].clone());
            self.entities.push(entity);
        }
    }
}
