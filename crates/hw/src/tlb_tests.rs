use super::{Asid, Tlb, Translation};
use crate::profile::TlbProfile;
use nestwalk_tables::Permissions;
use nestwalk_types::{Gva, Hpa, PageSize, SplitMix64};

fn array(sizes: &[&str], entries: u32, ways: u32) -> TlbProfile {
    let sizes = sizes.iter().map(|s| (*s).to_owned()).collect();
    TlbProfile { sizes, entries, ways, source: "test".into(), ..Default::default() }
}

fn page(frame: u64, size: PageSize, global: bool) -> Translation {
    Translation::new(Hpa::new(frame), size, Permissions::ALL, true, global)
}

const A: Asid = Asid::new(1, 7);

#[test]
fn only_entries_that_allow_stores_at_once_can_be_removed() {
    let mut tlb = Tlb::new(&crate::Profile::load("zen2").unwrap().l2_tlb);
    let asid = Asid::new(1, 7);
    let page = |i: u64| Gva::new(i << 12);
    let all = Permissions::ALL;
    for (i, (write, dirty)) in [(true, true), (true, false), (false, true)].into_iter().enumerate()
    {
        let permissions = Permissions { write, ..all };
        let entry =
            Translation::new(Hpa::new(0x5000), PageSize::SIZE_4K, permissions, dirty, i == 1);
        tlb.fill(page(i as u64), asid, entry);
    }
    tlb.remove_stores();
    let left: Vec<bool> = (0..3).map(|i| tlb.look_up(page(i), asid).is_some()).collect();
    assert_eq!(left, [false, true, true]);
}

#[test]
fn a_translation_keeps_what_it_is_given() {
    let p = Permissions { write: true, user: false, execute: true };
    let t = Translation::new(Hpa::new(0xf_ffff_c000_0000), PageSize::SIZE_1G, p, false, true);
    assert_eq!((t.frame(), t.size()), (Hpa::new(0xf_ffff_c000_0000), PageSize::SIZE_1G));
    assert_eq!((t.permissions(), t.is_dirty(), t.is_global()), (p, false, true));
    assert_eq!(t.apply(Gva::new(0x1_2345_6789)), Hpa::new(0xf_ffff_c000_0000 + 0x2345_6789));
    assert!(!t.is_splinter() && t.splinter_of(PageSize::from_shift(39)).is_splinter());
    assert!(!t.serves(Translation::needs(true, false, true)));
    assert!(t.serves(Translation::needs(false, true, false)));
}

/// P equally likely pages in a structure of E entries: E/P of the accesses hit, for whatever
/// replacement that keeps the most recent use.
#[test]
fn hit_rate_is_entries_over_pages() {
    for (entries, ways, pages) in [(64, 4, 1024), (1536, 12, 6144), (1536, 6, 6144), (64, 64, 256)]
    {
        let mut tlb = Tlb::new(&[array(&["4k", "2m"], entries, ways)]);
        let mut r = SplitMix64::new(5);
        let (mut hits, accesses) = (0u32, 400_000u32);
        for i in 0..accesses + 50_000 {
            let gva = Gva::new(r.below(pages) << 12);
            let hit = tlb.look_up(gva, A).is_some();
            hits += u32::from(hit && i >= 50_000);
            if !hit {
                tlb.fill(gva, A, page(gva.value(), PageSize::SIZE_4K, false));
            }
        }
        let (rate, theory) =
            (f64::from(hits) / f64::from(accesses), f64::from(entries) / pages as f64);
        assert!((rate - theory).abs() < 0.003, "{entries}/{pages}: {rate} is not {theory}");
    }
}

#[test]
fn tags_tell_address_spaces_and_global_entries_are_shared() {
    let mut tlb = Tlb::new(&[array(&["4k"], 64, 4)]);
    let (gva, other) = (Gva::new(0x5000), Asid::new(1, 8));
    tlb.fill(gva, A, page(0x1000, PageSize::SIZE_4K, false));
    assert!(tlb.look_up(gva, other).is_none());
    assert!(tlb.look_up(gva, Asid::new(2, 7)).is_none());
    tlb.fill(Gva::new(0x6000), A, page(0x2000, PageSize::SIZE_4K, true));
    assert!(tlb.look_up(Gva::new(0x6000), other).is_some());
    assert!(tlb.look_up(Gva::new(0x6000), Asid::new(2, 8)).is_none(), "global within a VM");
    tlb.invalidate_asid(A);
    assert!(tlb.look_up(gva, A).is_none());
    assert!(tlb.look_up(Gva::new(0x6000), A).is_some(), "a global entry stays");
    assert_eq!(tlb.invalidate_page(Gva::new(0x6000), A, false), 0);
    assert_eq!(tlb.invalidate_page(Gva::new(0x6000), A, true), 1);
}

#[test]
fn kernel_addresses_fit_the_tag() {
    let mut tlb = Tlb::new(&[array(&["4k"], 64, 4)]);
    let high = Gva::new(0xffff_ffff_ffff_f000);
    tlb.fill(high, A, page(0x1000, PageSize::SIZE_4K, true));
    assert!(tlb.look_up(high, A).is_some());
    assert!(tlb.look_up(Gva::new(0x0000_ffff_ffff_f000), A).is_none());
}

#[test]
fn an_invalidation_removes_all_splinters_of_the_page_and_no_other_entry() {
    let mut tlb = Tlb::new(&[array(&["4k"], 64, 4)]);
    for i in 0..4u64 {
        let part = page(i << 12, PageSize::SIZE_4K, false).splinter_of(PageSize::SIZE_2M);
        tlb.fill(Gva::new(0x40_0000 + (i << 12)), A, part);
        tlb.fill(Gva::new(0x60_0000 + (i << 12)), A, part);
        tlb.fill(Gva::new(0x40_4000 + (i << 12)), A, page(0, PageSize::SIZE_4K, false));
    }
    assert_eq!(tlb.invalidate_page(Gva::new(0x41_0000), A, true), 4);
    assert_eq!(tlb.len(), 8);
    assert!(tlb.look_up(Gva::new(0x60_0000), A).is_some());
    assert!(tlb.look_up(Gva::new(0x40_4000), A).is_some());
}

#[test]
fn a_size_without_entries_is_splintered_in_the_first_level_and_left_out_of_the_second() {
    let mut tlb = Tlb::new(&[array(&["4k"], 64, 4)]);
    let gva = Gva::new(0x4060_1234);
    tlb.fill(gva, A, page(0x4000_0000, PageSize::SIZE_2M, false));
    assert!(tlb.is_empty());
    tlb.fill_splintering(gva, A, page(0x8000_0000, PageSize::SIZE_2M, false));
    let part = tlb.look_up(gva, A).unwrap();
    assert_eq!((part.size(), part.apply(gva)), (PageSize::SIZE_4K, Hpa::new(0x8000_1234)));
    assert!(tlb.look_up(Gva::new(0x4060_2234), A).is_none());
    assert_eq!(tlb.invalidate_page(Gva::new(0x407f_0000), A, false), 1);
}
