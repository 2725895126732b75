//! Mistakes in a declaration, one kind a file: what the compiler says, and where it points.
// Messages do not differ by features: once is enough.
#![cfg(feature = "tools")]

#[test]
fn mistakes_are_explained() {
    trybuild::TestCases::new().compile_fail("tests/ui/*/*.rs");
}
