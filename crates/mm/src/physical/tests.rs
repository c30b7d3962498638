use super::*;
use nestwalk_types::Gpa;

const GIB: u64 = 1 << 30;

fn memory(bytes: u64) -> PhysicalMemory<Gpa> {
    PhysicalMemory::new(&pc_memory_map(bytes), 8 << 20).unwrap()
}

#[test]
fn the_map_is_qemu_s() {
    assert_eq!(pc_memory_map::<Gpa>(2 * GIB), [(Gpa::new(0), 2 * GIB)]);
    assert_eq!(pc_memory_map::<Gpa>(0xdfff_f000).len(), 1);
    let large = pc_memory_map::<Gpa>(8 * GIB);
    assert_eq!(large, [(Gpa::new(0), 3 * GIB), (Gpa::new(4 * GIB), 5 * GIB)]);
}

#[test]
fn normal_first_then_dma32_and_never_what_is_reserved() {
    let mut m = memory(4 * GIB);
    assert_eq!(m.zones().map(|z| z.0).collect::<Vec<_>>(), ["NORMAL", "DMA32"]);
    assert_eq!(m.pinned_frames(), 256 + 2048);
    assert_eq!(m.free_frames(), ((4 * GIB) >> 12) - 256 - 2048);
    assert_eq!(m.alloc(18), Some(Gpa::new(4 * GIB)));
    // NORMAL is full; the first GiB has the reserved frames.
    assert_eq!(m.alloc(18), Some(Gpa::new(GIB)));
    let mut frames = 2u64 << 18;
    while let Some(f) = m.alloc(0) {
        let a = f.value();
        assert!(a >= LOW_RESERVED_BYTES && !(16 << 20..24 << 20).contains(&a), "{f:?}");
        frames += 1;
    }
    assert_eq!(frames + m.pinned_frames(), m.bytes() >> 12);
}

#[test]
fn wrong_memories_are_refused() {
    let new = |r: &[(u64, u64)]| {
        let r: Vec<_> = r.iter().map(|r| (Gpa::new(r.0), r.1)).collect();
        PhysicalMemory::new(&r, 0).map(|_| ()).unwrap_err().to_string()
    };
    assert!(new(&[(0, (1 << 44) + 4096)]).contains("16 TiB"));
    assert!(new(&[(0, 4097)]).contains("whole pages"));
    assert!(new(&[(0, 1 << 21), (1 << 20, 1 << 21)]).contains("overlap"));
    assert!(new(&[(0, 1 << 20)]).contains("nothing is left"));
    assert!(memory(1 << 30).fragment(1.5, 0).is_err());
    assert!(memory(1 << 30).fragment(f64::NAN, 0).is_err());
}

#[test]
fn fragmentation_takes_that_share_of_the_2_mib_blocks() {
    for degree in [0.0, 0.3, 1.0] {
        let mut m = memory(8 * GIB);
        let whole = m.free_frames();
        m.fragment(degree, 42).unwrap();
        assert!((m.fmfi(9) - degree).abs() < 0.04, "{degree}: {}", m.fmfi(9));
        // 4.5 frames of each block that is hit, a few of them taken already.
        let lost = (whole - m.free_frames()) as f64 / (4096.0 * 4.5);
        assert!((lost - degree).abs() < 0.05, "{degree}: {lost}");
        let mut again = memory(8 * GIB);
        again.fragment(degree, 42).unwrap();
        assert_eq!(again.free_frames(), m.free_frames());
    }
}

#[test]
fn a_shared_1_gib_block_may_be_split_twice() {
    let mut m = memory(4 * GIB);
    let whole = m.free_frames();
    let block = m.alloc(18).unwrap();
    m.share(block, 18);
    m.split(block, 18, 9);
    let second = block.offset_by(2 << 20);
    assert_eq!(m.release(second, 9), 0); // copied by one mapper: the other has it alone
    m.split(second, 9, 0); // and splits it
    let pages: u64 = parts(second, 9, 0).map(|p| m.release(p, 0)).sum();
    assert_eq!(pages, 512);
    let rest: Vec<_> = parts(block, 18, 9).filter(|p| *p != second).collect();
    assert_eq!(rest.iter().map(|p| m.release(*p, 9)).sum::<u64>(), 0);
    assert_eq!(rest.iter().map(|p| m.release(*p, 9)).sum::<u64>(), 511 << 9);
    assert_eq!((m.free_frames(), m.shares.len(), m.split), (whole, 0, 0));
    assert!(m.extra.is_empty());
}

#[test]
fn shared_blocks_are_freed_with_their_last_mapping() {
    let mut m = memory(GIB);
    let whole = m.free_frames();
    let block = m.alloc(9).unwrap();
    assert!(!m.is_shared(block, 9));
    m.share(block, 9);
    m.share(block, 9); // three mappings
    assert!(m.is_shared(block, 9));
    m.split(block, 9, 0); // one of them in 4 KiB pages now
    let pages: Vec<_> = parts(block, 9, 0).collect();
    assert_eq!(m.release(pages[5], 0), 0); // copied by its owner
    assert_eq!(m.release(block, 9), 0); // the second mapper goes
    assert!(m.is_shared(block, 9) && !m.is_shared(pages[5], 0));
    for (i, p) in pages.iter().enumerate().filter(|p| p.0 != 5) {
        assert_eq!(m.release(*p, 0), 0, "{i}");
    }
    assert!(!m.is_shared(block, 9));
    assert_eq!(m.release(block, 9), 512);
    assert_eq!((m.free_frames(), m.shares.len(), m.split), (whole, 0, 0));
    assert!(m.extra.is_empty());
}
