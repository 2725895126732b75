//! Compiles the tables of system calls to seccomp programs.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Result, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, sock_filter,
};

use super::Kind;
use super::tables::{Only, Table, of};

/// One seccomp program for each kind of thread.
pub(super) struct Filters([BpfProgram; Kind::ALL.len()]);

impl Filters {
    /// Compiles the tables; calls that a table does not list get the action `otherwise`.
    pub(super) fn new(otherwise: SeccompAction) -> Result<Self> {
        let mut filters = Self(Default::default());
        for (kind, program) in Kind::ALL.into_iter().zip(&mut filters.0) {
            *program = compile(&of(kind, otherwise.clone()))?;
        }
        Ok(filters)
    }

    pub(super) fn apply(&self, kind: Kind) -> Result<()> {
        apply_filter(&self.0[kind as usize])
    }
}

fn compile(table: &Table) -> Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for &request in table.requests.iter().copied().flatten() {
        add(&mut rules, libc::SYS_ioctl, &[Only::Is(1, request.into())])?;
    }
    for &(call, only) in table.calls.iter().copied().flatten() {
        add(&mut rules, call, only)?;
    }
    // A call without rules is allowed with any arguments.
    for (call, _) in table.calls.iter().copied().flatten().filter(|(_, only)| only.is_empty()) {
        rules.insert(*call, Vec::new());
    }
    let starts_threads = rules.contains_key(&libc::SYS_clone);
    let filter = SeccompFilter::new(rules, table.otherwise.clone(), SeccompAction::Allow, TargetArch::x86_64)?;
    let program = BpfProgram::try_from(filter)?;
    Ok(if starts_threads { without_clone3(program) } else { program })
}

fn add(rules: &mut BTreeMap<i64, Vec<SeccompRule>>, call: i64, only: &[Only]) -> Result<()> {
    let alternatives = rules.entry(call).or_default();
    if !only.is_empty() {
        let rule = rule(only)?;
        if !alternatives.contains(&rule) {
            alternatives.push(rule);
        }
    }
    Ok(())
}

fn rule(only: &[Only]) -> Result<SeccompRule> {
    let conditions = only.iter().map(|only| {
        let (argument, operator, value) = match *only {
            Only::Is(argument, value) => (argument, SeccompCmpOp::Eq, value),
            Only::Bits(argument, mask, value) => (argument, SeccompCmpOp::MaskedEq(mask), value),
            Only::ThisProcess(argument) => (argument, SeccompCmpOp::Eq, std::process::id().into()),
        };
        // The kernel uses only the lower half of each argument that is compared here: numbers, flags, requests.
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    });
    Ok(SeccompRule::new(conditions.collect::<std::result::Result<_, _>>()?)?)
}

/// Puts a check before `program` that answers `clone3` with ENOSYS.
fn without_clone3(program: BpfProgram) -> BpfProgram {
    let answer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let instruction = |code, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let mut longer = vec![
        // The number of the call is the first field of `seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_clone3 as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, answer),
    ];
    longer.extend(program);
    longer
}
