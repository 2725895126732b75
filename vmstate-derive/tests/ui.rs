//! Mistakes in a declaration, one kind in each file: the compiler's messages, and where they point.

#[test]
fn mistakes_are_explained() {
    trybuild::TestCases::new().compile_fail("tests/ui/*/*.rs");
}
