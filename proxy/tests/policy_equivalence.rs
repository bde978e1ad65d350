//! The compiled policy decides as a naive reading of the same file does, on generated policies and questions.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]

mod policy_generated;
mod policy_naive;

use policy_generated::{policy, question};
use policy_naive::{compiled, naive};
use proptest::prelude::*;
use sluice::diagnostic::Diagnostics;
use sluice::policy::parse;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn compiled_decides_as_the_file_reads(
        text in policy(),
        questions in prop::collection::vec(question(), 20),
    ) {
        let mut out = Diagnostics::default();
        let file = parse(&text, &"p.yaml".into(), &mut out);
        prop_assert!(!out.has_errors(), "{out}{text}");
        let file = file.unwrap();
        for question in &questions {
            prop_assert_eq!(compiled(&file, question), naive(&file, question), "{:?}\n{}", question, text);
        }
    }
}
