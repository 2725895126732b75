//! Mistakes in a declaration, one kind a file: what the compiler says, and where it points.

#[test]
fn mistakes_are_explained() {
    trybuild::TestCases::new().compile_fail("tests/ui/*/*.rs");
}
