//! Target: two releases of one section, drawn from the input. The checker must terminate, and give the same verdict
//! from either side of a comparison.

use arbitrary::{Arbitrary, Result, Unstructured};
use vmstate::compat::{Comparison, Direction, Verdict, check};
use vmstate::schema::json::Schema;
use vmstate::schema::{Description, Field, Kind, Limit, MaybeStatic, Presence};

use crate::Target;
use crate::schema::loads_in_itself;

pub(crate) const TARGET: Target = Target { name: "compat", memory: 512 << 20, body, seeds };

/// Most nested structs inside one another; deeper nesting makes no new case, but many more states.
const DEPTH: usize = 2;

fn body(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let Ok(old) = description(&mut input, "d", 0) else { return };
    let Ok(new) = next_release(&mut input, &old) else { return };
    for release in [&old, &new] {
        let mut schema = Schema::new(None);
        schema.add("d", release).expect("one section");
        let again = Schema::from_json(&schema.to_json()).unwrap_or_else(|error| panic!("{error}: {release:?}"));
        assert_eq!(again, schema, "read back as something else");
        loads_in_itself(release);
    }
    let (forward, backward) = (check(&old, &new), check(&new, &old));
    forward.to_string();
    let of = |comparisons: &[Comparison], version: u32, direction: Direction| -> Vec<String> {
        let same =
            comparisons.iter().filter(|comparison| comparison.version == version && comparison.direction == direction);
        same.map(|comparison| outcome(&comparison.verdict)).collect()
    };
    assert_eq!(
        of(&forward.comparisons, new.version, Direction::NewToOld),
        of(&backward.comparisons, new.version, Direction::OldToNew),
        "the verdicts of both sides differ for {old:?} and {new:?}"
    );
}

/// A verdict without the remedies, which depend on the side.
fn outcome(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Loads => "loads".into(),
        Verdict::LoadsIf(cases) => cases
            .iter()
            .map(|case| format!("{:?} {:?} {:?}", case.when, case.breaks.field, case.breaks.reason))
            .collect(),
        Verdict::Breaks(breaks) | Verdict::NotCompared(breaks) => format!("{:?} {:?}", breaks.field, breaks.reason),
    }
}

fn description(input: &mut Unstructured<'_>, name: &str, depth: usize) -> Result<Description> {
    let version = input.int_in_range(0..=4)?;
    let minimum_version = input.int_in_range(0..=version)?;
    let fields = (0..input.int_in_range(0..=4)?).map(|_| field(input, depth)).collect::<Result<Vec<_>>>()?;
    let mut subsections = Vec::new();
    for _ in 0..if depth < DEPTH { input.int_in_range(0..=2)? } else { 0 } {
        let name = format!("{name}/{}", input.choose(&["a", "b"])?);
        subsections.push(description(input, &name, depth + 1)?);
    }
    Ok(Description::new(name.into(), version, minimum_version, fields.into(), subsections.into()))
}

fn field(input: &mut Unstructured<'_>, depth: usize) -> Result<Field> {
    let name: MaybeStatic<str> = (*input.choose(&["a", "b", "c"])?).into();
    let presence = match u8::arbitrary(input)? {
        0..=170 => Presence::Since(input.int_in_range(0..=4)?),
        171..=200 => Presence::Tag(input.int_in_range(0..=3)?),
        _ => Presence::If((*input.choose(&["is_a", "is_b", "is_c"])?).into()),
    };
    Ok(Field::new(name, kind(input, depth)?, presence))
}

fn kind(input: &mut Unstructured<'_>, depth: usize) -> Result<Kind> {
    let size = |input: &mut Unstructured<'_>| input.int_in_range(0_usize..=9);
    let width = |input: &mut Unstructured<'_>| input.choose(&[1_u8, 2, 4, 8]).copied();
    Ok(match u8::arbitrary(input)? % 22 {
        0 => Kind::Bool,
        1 | 2 => Kind::Unsigned(width(input)?),
        3 => Kind::Signed(width(input)?),
        4 => Kind::Buffer(size(input)?),
        5 => Kind::CountedBuffer,
        6 => Kind::Unused(size(input)?),
        7 => Kind::Custom((*input.choose(&["timer", "pci", "size 8"])?).into()),
        8 => Kind::Check,
        9 => Kind::Timer,
        10 => Kind::Double,
        11 => Kind::Bitmap(size(input)? * 16),
        12 => Kind::CountedBitmap,
        13 => Kind::Limited(MaybeStatic::from(Kind::Unsigned(width(input)?)), limit(input)?),
        _ if depth >= DEPTH => Kind::Bool,
        14 | 15 => Kind::Struct(nested(input, depth)?),
        16 => Kind::StructAt(nested(input, depth)?, input.int_in_range(0..=4)?),
        17 => Kind::Array(MaybeStatic::from(kind(input, depth + 1)?), size(input)?),
        18 => Kind::CountedArray(MaybeStatic::from(kind(input, depth + 1)?)),
        19 => Kind::List(MaybeStatic::from(kind(input, depth + 1)?)),
        20 => Kind::Map(MaybeStatic::from(kind(input, depth + 1)?), MaybeStatic::from(kind(input, depth + 1)?)),
        _ => Kind::Nullable(MaybeStatic::from(kind(input, depth + 1)?)),
    })
}

fn nested(input: &mut Unstructured<'_>, depth: usize) -> Result<MaybeStatic<Description>> {
    let name = *input.choose(&["d", "d/a", "e"])?;
    description(input, name, depth + 1).map(MaybeStatic::from)
}

fn limit(input: &mut Unstructured<'_>) -> Result<Limit> {
    let number = |input: &mut Unstructured<'_>| i8::arbitrary(input).map(i128::from);
    Ok(match u8::arbitrary(input)? % 5 {
        0 => Limit::Equal,
        1 => Limit::AtMostCurrent,
        2 => Limit::NotZero,
        3 => Limit::Within(number(input)?, number(input)?),
        _ => Limit::OneOf(vec![number(input)?, number(input)?].into()),
    })
}

/// The next release: the same description with some fields removed, added or changed, or an unrelated description.
fn next_release(input: &mut Unstructured<'_>, old: &Description) -> Result<Description> {
    if input.ratio(1, 8)? {
        return description(input, "d", 0);
    }
    let mut fields = Vec::new();
    for kept in old.fields.iter() {
        match u8::arbitrary(input)? {
            0..=180 => fields.push(kept.clone()),
            181..=200 => {}
            201..=230 => fields.extend([kept.clone(), field(input, 0)?]),
            _ => fields.push(Field::new(kept.name.clone(), kind(input, 0)?, kept.presence.clone())),
        }
    }
    let subsections = match bool::arbitrary(input)? {
        true => old.subsections.clone(),
        false => vec![description(input, "d/a", 1)?].into(),
    };
    let version = old.version + input.int_in_range(0..=1)?;
    Ok(Description::new(old.name.clone(), version, old.minimum_version, fields.into(), subsections))
}

fn seeds() -> Vec<Vec<u8>> {
    // Any bytes describe a pair of releases; these seeds are long enough for every kind of field.
    let ramp: Vec<u8> = (0..=255).collect();
    (1..16).map(|step| ramp.iter().map(|byte: &u8| byte.wrapping_mul(step)).collect()).collect()
}
