//! The names that types have in a stream's self-description (migration/vmstate-types.c).

use std::borrow::Cow;

use super::{Kind, Limit};

/// The type name of a kind in a self-description; for an array or a pointer, that of its contents.
pub(super) fn type_name(kind: &Kind) -> Cow<'_, str> {
    match kind {
        Kind::Bool => "bool".into(),
        Kind::Unsigned(1) => "uint8".into(),
        Kind::Unsigned(2) => "uint16".into(),
        Kind::Unsigned(4) => "uint32".into(),
        Kind::Unsigned(8) => "uint64".into(),
        Kind::Unsigned(bytes) => format!("uint{}", u32::from(*bytes) * 8).into(),
        Kind::Signed(bytes) => format!("int{}", u32::from(*bytes) * 8).into(),
        Kind::Buffer(_) | Kind::CountedBuffer => "buffer".into(),
        Kind::Unused(_) => "unused_buffer".into(),
        Kind::Struct(_) => "struct".into(),
        Kind::StructAt(..) => "vstruct".into(),
        Kind::Temporary(_) => "tmp".into(),
        Kind::Limited(inner, limit) => limited(inner, limit),
        Kind::Timer => "timer".into(),
        Kind::Double => "CPU_Double_U".into(),
        Kind::Bitmap(_) | Kind::CountedBitmap => "bitmap".into(),
        Kind::List(_) => "qtailq".into(),
        Kind::Map(..) => "gtree".into(),
        Kind::Custom(name) => (**name).into(),
        Kind::Nullable(inner) | Kind::Array(inner, _) | Kind::CountedArray(inner) => type_name(inner),
        Kind::Check => "".into(),
    }
}

/// A limit without a name in QEMU has the integer's name.
fn limited<'a>(inner: &'a Kind, limit: &Limit) -> Cow<'a, str> {
    match (inner, limit) {
        // QEMU gives its `VMSTATE_UINT64_EQUAL` this name (`vmstate_info_uint64_equal`).
        (Kind::Unsigned(8), Limit::Equal) => "int64 equal".into(),
        (_, Limit::Equal) => format!("{} equal", type_name(inner)).into(),
        (_, Limit::AtMostCurrent) => format!("{} le", type_name(inner)).into(),
        (_, Limit::NotZero | Limit::Scalar | Limit::Within(..) | Limit::OneOf(_)) => type_name(inner),
    }
}
