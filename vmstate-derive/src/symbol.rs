//! The attribute words, and a search for the word most similar to a misspelled one.

pub(crate) const ALIAS_ID: &str = "alias_id";
pub(crate) const AT_MOST_CURRENT: &str = "at_most_current";
pub(crate) const BITMAP: &str = "bitmap";
pub(crate) const BUFFER: &str = "buffer";
pub(crate) const COUNTED: &str = "counted";
pub(crate) const CRATE: &str = "crate";
pub(crate) const EARLY_SETUP: &str = "early_setup";
pub(crate) const EQUAL: &str = "equal";
pub(crate) const EXISTS: &str = "exists";
pub(crate) const INSTANCE_ID: &str = "instance_id";
pub(crate) const LEN: &str = "len";
pub(crate) const LIST: &str = "list";
pub(crate) const MAP: &str = "map";
pub(crate) const MAX: &str = "max";
pub(crate) const MINIMUM_VERSION: &str = "minimum_version";
pub(crate) const MUST_EXIST: &str = "must_exist";
pub(crate) const NAME: &str = "name";
pub(crate) const NEEDED: &str = "needed";
pub(crate) const POST_LOAD: &str = "post_load";
pub(crate) const POST_SAVE: &str = "post_save";
pub(crate) const PRE_LOAD: &str = "pre_load";
pub(crate) const PRE_SAVE: &str = "pre_save";
pub(crate) const PRIORITY: &str = "priority";
pub(crate) const RANGE: &str = "range";
pub(crate) const REMOTE: &str = "remote";
pub(crate) const SINCE: &str = "since";
pub(crate) const SKIP: &str = "skip";
pub(crate) const SLICE: &str = "slice";
pub(crate) const STRUCT_VERSION: &str = "struct_version";
pub(crate) const SUBSECTION: &str = "subsection";
pub(crate) const TMP: &str = "tmp";
pub(crate) const TRANSPARENT: &str = "transparent";
pub(crate) const UNFRAMED: &str = "unframed";
pub(crate) const UNMIGRATABLE: &str = "unmigratable";
pub(crate) const VALIDATE: &str = "validate";
pub(crate) const VERSION: &str = "version";
pub(crate) const VIA: &str = "via";
pub(crate) const VMSTATE: &str = "vmstate";
pub(crate) const WIRE: &str = "wire";
pub(crate) const WITH: &str = "with";

/// The words whose value is a type.
pub(crate) const TYPES: &[&str] = &[TMP, VIA, WIRE];

/// The words that are allowed on a struct.
pub(crate) const ON_CONTAINER: &[&str] = &[
    ALIAS_ID,
    CRATE,
    EARLY_SETUP,
    INSTANCE_ID,
    MINIMUM_VERSION,
    NAME,
    NEEDED,
    POST_LOAD,
    POST_SAVE,
    PRE_LOAD,
    PRE_SAVE,
    PRIORITY,
    REMOTE,
    SUBSECTION,
    TRANSPARENT,
    UNMIGRATABLE,
    VALIDATE,
    VERSION,
];

/// The words that are allowed in `subsection(…)`.
pub(crate) const IN_SUBSECTION: &[&str] =
    &[MINIMUM_VERSION, NAME, NEEDED, POST_LOAD, POST_SAVE, PRE_LOAD, PRE_SAVE, VALIDATE, VERSION];

/// The words that are allowed on a field.
pub(crate) const ON_FIELD: &[&str] = &[
    AT_MOST_CURRENT,
    BITMAP,
    BUFFER,
    COUNTED,
    EQUAL,
    EXISTS,
    LEN,
    LIST,
    MAP,
    MAX,
    MUST_EXIST,
    NAME,
    RANGE,
    SINCE,
    SKIP,
    SLICE,
    STRUCT_VERSION,
    SUBSECTION,
    TMP,
    UNFRAMED,
    VALIDATE,
    VIA,
    WIRE,
    WITH,
];

/// The allowed word that `word` was probably meant to be.
pub(crate) fn nearest<'a>(word: &str, allowed: &[&'a str]) -> Option<&'a str> {
    allowed
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()) / 3 || candidate.starts_with(word))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.chars().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_of_the_pen_and_nothing_far() {
        assert_eq!(nearest("sinc", ON_FIELD), Some(SINCE));
        assert_eq!(nearest("skipped", ON_FIELD), None);
        assert_eq!(nearest("minimum", ON_CONTAINER), Some(MINIMUM_VERSION));
        assert_eq!(nearest("postload", ON_CONTAINER), Some(POST_LOAD));
        assert_eq!(nearest("colour", ON_FIELD), None);
    }

    #[test]
    fn words_are_sorted() {
        for words in [ON_CONTAINER, IN_SUBSECTION, ON_FIELD] {
            assert!(words.is_sorted());
        }
    }
}
