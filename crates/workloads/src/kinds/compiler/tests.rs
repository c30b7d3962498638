use super::*;
use nestwalk_types::Batch;

/// Value and tokens of a function by evaluating its postfix source directly.
fn evaluate(c: &Compiler, function: u64) -> (u64, u64) {
    let (mut text, mut stack, mut tokens) = (c.source(function), vec![], 0);
    while let Some(token) = text.next(&c.symbols) {
        tokens += 1;
        match token {
            Token::Name(s) => stack.push(symbol_value(s)),
            Token::Operator(o) => {
                let b = stack.pop().unwrap();
                let a = stack.pop().unwrap();
                stack.push(apply(o, a, b));
            }
        }
    }
    assert_eq!(stack.len(), 1, "the source is one expression");
    (stack[0], tokens)
}

#[test]
fn code_computes_what_the_source_says_and_arenas_hold_it_exactly() {
    let chunk = 16 << 10;
    let size = (10_000, 20_000);
    let mut c = Compiler::new(size, chunk, 20, 3, &mut AddressSpace::new());
    let mut m = Recorder::new(u64::MAX);
    let mut sizes = vec![];
    for function in 0..20 {
        let (value, tokens) = evaluate(&c, function);
        // Stop before the last instruction is emitted: everything is alive then.
        while c.pass != Pass::Emit {
            c.step(&mut m);
        }
        assert_eq!(c.nodes.last().unwrap().value, value);
        assert_eq!(c.nodes.len() as u64, tokens);
        let chunks = |object: u64| tokens.div_ceil(chunk / object);
        assert_eq!(c.chunks.live_bytes(), (chunks(NODE) + chunks(CODE)) * chunk);
        let mut objects: Vec<(u64, u64)> = c.nodes.iter().map(|n| (n.address, NODE)).collect();
        objects.extend(c.instructions.iter().map(|&a| (a, CODE)));
        objects.sort_unstable();
        assert!(objects.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "objects overlap");
        sizes.push(tokens);
        while c.done == function {
            c.step(&mut m);
        }
        assert_eq!((c.chunks.live_bytes(), c.wrong), (0, 0));
    }
    let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
    assert!(*most > 3 * least && *most <= 20_000, "{sizes:?}");
}

#[test]
fn what_is_mapped_is_unmapped() {
    let size = (1000, 5000);
    let mut c = Compiler::new(size, 8 << 10, 10, 1, &mut AddressSpace::new());
    let mut m = Recorder::new(u64::MAX);
    while c.step(&mut m) {}
    let mut batch = Batch::default();
    m.take_into(&mut batch);
    let (mut mapped, mut unmaps) = (0, 0);
    for (_, control) in &batch.controls {
        match control {
            Control::Map { bytes, .. } => mapped += bytes,
            Control::Unmap { bytes, .. } => {
                assert_eq!(*bytes, mapped);
                (mapped, unmaps) = (0, unmaps + 1);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((mapped, unmaps), (0, 10));
}
