//! The derive's model of a struct: parts (the struct itself, then its subsections), and fields, each of which belongs to one
//! part.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{DataStruct, DeriveInput, Expr, ExprRange, Fields, Ident, Index, Member, Path, Type, TypeArray, Variant};

use crate::attr::Spanned;
use crate::attr::container::{ContainerAttrs, PartAttrs};
use crate::attr::field::{FieldAttrs, With};
use crate::attr::section::SectionAttrs;
use crate::ctxt::Ctxt;

/// The struct.
pub(crate) struct Container<'a> {
    pub(crate) input: &'a DeriveInput,
    /// The struct itself, then its subsections.
    pub(crate) parts: Vec<DescriptionPart>,
    /// All fields in declaration order, the skipped ones too.
    pub(crate) fields: Vec<Field<'a>>,
    /// How the struct is treated as a section.
    pub(crate) section: SectionAttrs,
    /// The struct of another crate that this struct stands for (`remote`).
    pub(crate) remote: Option<Spanned<Path>>,
}

/// The struct itself or a subsection: both have a name and versions on the wire.
pub(crate) struct DescriptionPart {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) minimum_version: u32,
    /// Index of the part that contains this subsection; `None` for the struct itself.
    pub(crate) parent: Option<usize>,
    pub(crate) attrs: PartAttrs,
    /// Where errors about the whole part are shown.
    pub(crate) tokens: TokenStream,
}

/// A field of the struct, migrated or skipped.
pub(crate) struct Field<'a> {
    pub(crate) member: Member,
    /// The expression for the field's value in the derived code.
    pub(crate) place: TokenStream,
    pub(crate) ty: &'a Type,
    /// The field's name on the wire.
    pub(crate) name: String,
    /// Index of the field's part; `None` if the field is skipped or names no declared subsection.
    pub(crate) part: Option<usize>,
    pub(crate) codec: Codec,
    pub(crate) attrs: FieldAttrs,
}

/// How a field is encoded.
pub(crate) enum Codec {
    /// As the field's type says.
    Plain,
    /// Raw bytes, of a fixed length or of a length in another field.
    Buffer(Option<Length>),
    /// Bits, of a fixed number or of a number in another field.
    Bitmap(Option<Length>),
    /// Elements whose number is in another field.
    Len(Length),
    /// A part of an array.
    Slice(ExprRange),
    /// A part of an array, as raw bytes.
    BufferSlice(ExprRange),
    /// Elements after their number, an integer of that type; at most as many as the expression says.
    Counted(Type, Expr),
    /// Elements, each encoded in another way than its type's.
    Each(Box<Framing>, By),
    /// Elements with a marker before each; at most as many as the expression says.
    List(Expr),
    /// Keys and values; at most as many as the expression says.
    Map(Expr),
    /// Keys and values, at most as many as the expression says; keys, values or both encoded in another way than their type's.
    Entries(Expr, Box<[Option<By>; 2]>),
    /// As the field's type says; a load accepts only the value that the device already has.
    Equal,
    /// As the field's type says; a load accepts 0 up to the value that the device already has.
    AtMostCurrent,
    /// As the field's type says, as the only field of a subsection: the subsection of an `Option` is sent if the value is `Some`.
    Whole,
    /// Converted to this integer type.
    Via(Type),
    /// As this type: the field is converted to the type for a save and back from it for a load.
    Proxy(Type),
    /// Each element of the array as for [`Proxy`](Self::Proxy).
    ProxyEach(TypeArray),
    /// As this type, which is made from the whole struct; the field itself holds nothing.
    Temporary(Type),
    /// A struct with versions, in the layout that it had at this version.
    At(u32),
    /// By the user's module.
    With(Path),
}

/// How the elements of a collection are delimited on the wire.
pub(crate) enum Framing {
    /// The elements of an array, one after the other.
    Array,
    /// As many elements as another field says.
    Len(Length),
    /// The number of elements, then the elements.
    Counted(Type, Expr),
    /// A marker before each element.
    List(Expr),
}

/// How one element is encoded.
pub(crate) enum By {
    /// As this type, by conversions.
    Via(Type),
    /// By the user's module.
    With(Path),
}

/// A length that another field holds.
pub(crate) struct Length {
    pub(crate) member: Member,
    /// The expression for the length's value in the derived code.
    pub(crate) place: TokenStream,
    pub(crate) name: String,
    /// Number of elements for each unit of the length.
    pub(crate) factor: Expr,
    pub(crate) max: Expr,
}

impl<'a> Container<'a> {
    /// Reads the struct; errors go to `ctxt`.
    pub(crate) fn new(ctxt: &Ctxt, input: &'a DeriveInput, data: &'a DataStruct, attrs: ContainerAttrs) -> Self {
        let mut parts = vec![DescriptionPart::new(ctxt, attrs.main, input.ident.to_token_stream())];
        for (item, attrs) in attrs.subsections {
            parts.push(DescriptionPart::new(ctxt, attrs, item.word.to_token_stream()));
        }
        for index in 1..parts.len() {
            parts[index].parent = Some(parent_of(&parts, index));
        }
        let fields = data.fields.iter().enumerate();
        let fields = fields.map(|(index, field)| Field::new(ctxt, index, field, &parts, &Holder::Struct));
        let mut fields: Vec<_> = fields.collect();
        for index in 0..fields.len() {
            let part = fields[index].part.filter(|part| *part > 0);
            let is_alone = part.is_some() && fields.iter().filter(|field| field.part == part).count() == 1;
            if let (true, codec @ Codec::Plain) = (is_alone, &mut fields[index].codec) {
                *codec = Codec::Whole;
            }
        }
        Self { input, parts, fields, section: attrs.section, remote: attrs.remote }
    }

    /// Reads a variant of an enum: a struct that has no versions and no subsections.
    pub(crate) fn of_variant(ctxt: &Ctxt, input: &'a DeriveInput, variant: &'a Variant) -> Self {
        let part = DescriptionPart {
            name: variant.ident.unraw().to_string(),
            version: 1,
            minimum_version: 1,
            parent: None,
            attrs: PartAttrs::default(),
            tokens: variant.ident.to_token_stream(),
        };
        let (parts, holder) = (vec![part], Holder::Variant(&variant.fields));
        let fields = variant.fields.iter().enumerate();
        let fields = fields.map(|(index, field)| Field::new(ctxt, index, field, &parts, &holder)).collect();
        Self { input, parts, fields, section: SectionAttrs::default(), remote: None }
    }

    /// The migrated fields of part `part`, each with its index among all fields.
    pub(crate) fn fields_of(&self, part: usize) -> impl Iterator<Item = (usize, &Field<'a>)> {
        self.fields.iter().enumerate().filter(move |(_, field)| field.part == Some(part))
    }

    /// The subsections of part `part`, each with its index among all parts.
    pub(crate) fn subsections_of(&self, part: usize) -> impl Iterator<Item = (usize, &DescriptionPart)> {
        self.parts.iter().enumerate().filter(move |(_, other)| other.parent == Some(part))
    }

    /// True if part `inner` is `outer`, or is nested in `outer` at any depth: then `outer`'s fields are loaded before `inner`'s.
    pub(crate) fn is_inside(&self, inner: usize, outer: usize) -> bool {
        inner == outer || self.parts[inner].parent.is_some_and(|parent| self.is_inside(parent, outer))
    }

    /// The field that is the whole of part `part`; if the field is an `Option`, its value decides whether the part is sent.
    pub(crate) fn whole_of(&self, part: usize) -> Option<&Field<'a>> {
        let mut fields = self.fields_of(part).map(|(_, field)| field);
        fields.find(|field| matches!(field.codec, Codec::Whole))
    }

    /// The migrated fields, each with its index among all fields.
    pub(crate) fn migrated(&self) -> impl Iterator<Item = (usize, &Field<'a>)> {
        self.fields.iter().enumerate().filter(|(_, field)| field.part.is_some())
    }
}

impl DescriptionPart {
    fn new(ctxt: &Ctxt, attrs: PartAttrs, tokens: TokenStream) -> Self {
        let name = match &attrs.name {
            Some(name) => name.value.clone(),
            None => {
                ctxt.error(&tokens, "a name on the wire is needed: `name = \"…\"`");
                String::new()
            }
        };
        let version = attrs.version.as_ref().map_or(1, |version| version.value);
        let minimum_version = attrs.minimum_version.as_ref().map_or(version, |version| version.value);
        let tokens = attrs.name.as_ref().map_or(tokens, |name| name.tokens.clone());
        Self { name, version, minimum_version, parent: None, attrs, tokens }
    }
}

/// The part whose name plus a slash is the longest prefix of the name of part `index`. A reader that looks for subsections gives
/// each one to the innermost struct or subsection whose name is such a prefix.
fn parent_of(parts: &[DescriptionPart], index: usize) -> usize {
    let name = &parts[index].name;
    let begins = |part: &DescriptionPart| name.strip_prefix(&part.name).is_some_and(|rest| rest.starts_with('/'));
    let parents = parts.iter().enumerate().filter(|(_, part)| begins(part));
    parents.max_by_key(|(_, part)| part.name.len()).map_or(0, |(parent, _)| parent)
}

impl<'a> Field<'a> {
    fn new(ctxt: &Ctxt, index: usize, field: &'a syn::Field, parts: &[DescriptionPart], holder: &Holder<'_>) -> Self {
        let attrs = FieldAttrs::from_attrs(ctxt, &field.attrs);
        let member = member(index, field);
        let own_name = match &member {
            Member::Named(ident) => ident.unraw().to_string(),
            Member::Unnamed(index) => index.index.to_string(),
        };
        let name = attrs.name.as_ref().map_or(own_name, |name| name.value.clone());
        let part = match (&attrs.skip, &attrs.subsection) {
            (Some(_), _) => None,
            (None, None) => Some(0),
            (None, Some(wanted)) => {
                // Index 0 is the struct itself, which is not a subsection.
                let found = parts.iter().skip(1).position(|part| part.name == wanted.value).map(|index| index + 1);
                if found.is_none() && matches!(holder, Holder::Struct) {
                    let message = format!("no `subsection(name = {:?}, …)` is declared on the struct", wanted.value);
                    ctxt.error(&wanted.tokens, message);
                }
                found
            }
        };
        let codec = Codec::new(&attrs, holder);
        let place = holder.place(&member);
        Self { member, place, ty: &field.ty, name, part, codec, attrs }
    }
}

/// The item whose fields are read.
enum Holder<'a> {
    Struct,
    /// A variant of an enum: each of its fields is bound to a variable.
    Variant(&'a Fields),
}

impl Holder<'_> {
    /// The expression for a field's value in the derived code.
    fn place(&self, wanted: &Member) -> TokenStream {
        let mut fields = match self {
            Self::Struct => None,
            Self::Variant(fields) => Some(fields.iter().enumerate()),
        };
        match fields.as_mut().and_then(|fields| fields.find(|(index, field)| member(*index, field) == *wanted)) {
            None => quote!(self.#wanted),
            Some((index, field)) => {
                let bound = bound(index, &field.ty);
                quote!((*#bound))
            }
        }
    }
}

/// The variable that a variant's field is bound to.
pub(crate) fn bound(index: usize, ty: &Type) -> Ident {
    format_ident!("field_{index}", span = ty.span())
}

fn member(index: usize, field: &syn::Field) -> Member {
    match &field.ident {
        Some(ident) => Member::Named(ident.clone()),
        None => Member::Unnamed(Index { index: u32::try_from(index).unwrap_or(u32::MAX), span: field.ty.span() }),
    }
}

impl Codec {
    fn new(attrs: &FieldAttrs, holder: &Holder<'_>) -> Self {
        let number = |given: Option<&Expr>, otherwise| given.cloned().unwrap_or(Expr::Verbatim(otherwise));
        let max = number(attrs.max.as_ref().map(|max| &max.value), quote!(0));
        let mut length = attrs.len.as_ref().map(|len| Length {
            name: len.value.field.unraw().to_string(),
            member: Member::Named(len.value.field.clone()),
            place: holder.place(&Member::Named(len.value.field.clone())),
            factor: number(len.value.factor.as_ref(), quote!(1)),
            max: max.clone(),
        });
        if attrs.map.is_some() {
            return match entries(attrs) {
                [None, None] => Self::Map(max),
                by => Self::Entries(max, by.into()),
            };
        }
        let by = match (&attrs.via, attrs.with.as_ref().map(|with| &with.value)) {
            (Some(via), None) => Some(By::Via(via.value.clone())),
            (None, Some(With::One(module) | With::Array(module))) => Some(By::With(module.clone())),
            _ => None,
        };
        if let Some(by) = by {
            let framing = match (&length, &attrs.counted, &attrs.list, &attrs.with) {
                (Some(_), ..) => length.take().map(Framing::Len),
                (None, Some(prefix), ..) => Some(Framing::Counted(prefix.value.clone(), max.clone())),
                (None, None, Some(_), _) => Some(Framing::List(max.clone())),
                (None, None, None, Some(Spanned { value: With::Array(_), .. })) => Some(Framing::Array),
                _ => None,
            };
            if let Some(framing) = framing {
                return Self::Each(Box::new(framing), by);
            }
        }
        match (&attrs.via, &attrs.tmp, &attrs.struct_version) {
            // Users cannot write a conversion from a whole array into one of another type (the orphan rule), so this is
            // unambiguous.
            (Some(proxy), ..) => {
                return match written(&proxy.value) {
                    Type::Array(each) => Self::ProxyEach(each.clone()),
                    _ => Self::Proxy(proxy.value.clone()),
                };
            }
            (_, Some(temporary), _) => return Self::Temporary(temporary.value.clone()),
            (.., Some(version)) => return Self::At(version.value),
            (None, None, None) => {}
        }
        if let Some(Spanned { value: With::One(module), .. }) = &attrs.with {
            Self::With(module.clone())
        } else if let Some(wire) = &attrs.wire {
            Self::Via(wire.value.clone())
        } else if let Some(prefix) = &attrs.counted {
            Self::Counted(prefix.value.clone(), max)
        } else if attrs.list.is_some() {
            Self::List(max)
        } else if let Some(slice) = &attrs.slice {
            let slice = slice.value.clone();
            if attrs.buffer.is_some() { Self::BufferSlice(slice) } else { Self::Slice(slice) }
        } else if attrs.bitmap.is_some() {
            Self::Bitmap(length)
        } else if attrs.buffer.is_some() {
            Self::Buffer(length)
        } else if let Some(length) = length {
            Self::Len(length)
        } else if attrs.equal.is_some() {
            Self::Equal
        } else if attrs.at_most_current.is_some() {
            Self::AtMostCurrent
        } else {
            Self::Plain
        }
    }

    /// The length, if another field holds it.
    pub(crate) fn length(&self) -> Option<&Length> {
        match self {
            Self::Len(length) | Self::Buffer(Some(length)) | Self::Bitmap(Some(length)) => Some(length),
            Self::Each(framing, _) => match framing.as_ref() {
                Framing::Len(length) => Some(length),
                _ => None,
            },
            _ => None,
        }
    }
}

/// How `via` and `with` encode keys and values; `None` means by their own type.
fn entries(attrs: &FieldAttrs) -> [Option<By>; 2] {
    let via = attrs.via.as_ref().and_then(|via| pair(&via.value)).unwrap_or_default();
    let with = match attrs.with.as_ref().map(|with| &with.value) {
        Some(With::Entries(key, value)) => [key.clone(), value.clone()],
        _ => [None, None],
    };
    let [key, value] = via;
    let [key_with, value_with] = with;
    [key.map(By::Via).or(key_with.map(By::With)), value.map(By::Via).or(value_with.map(By::With))]
}

/// The types that replace a map's keys and values, if the type is a pair; `_` keeps the own type.
pub(crate) fn pair(ty: &Type) -> Option<[Option<Type>; 2]> {
    let Type::Tuple(tuple) = written(ty) else { return None };
    let mut types = tuple.elems.iter().map(|ty| (!matches!(ty, Type::Infer(_))).then(|| ty.clone()));
    match (types.next(), types.next(), types.next()) {
        (Some(key), Some(value), None) => Some([key, value]),
        _ => None,
    }
}

/// The type without the invisible groups and parentheses that a macro or the user may have put around it.
pub(crate) fn written(mut ty: &Type) -> &Type {
    loop {
        match ty {
            Type::Group(group) => ty = &group.elem,
            Type::Paren(paren) => ty = &paren.elem,
            _ => return ty,
        }
    }
}
