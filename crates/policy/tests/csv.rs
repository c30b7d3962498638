//! The format of samples, byte by byte.

use nestwalk_policy::{Mode, Row, Sample, SampleReader, SampleWriter};
use proptest::prelude::*;

const HEADER: &str = "time_ns,duration_ns,busy_ns,instructions,guest_cycles,host_kernel_cycles,\
                      host_user_cycles,walk_cycles,guest_page_faults,tlb_misses,vm_exits,mode";

fn read(text: &str) -> Result<Vec<Row>, String> {
    let reader = SampleReader::new(text.as_bytes()).map_err(|e| e.to_string())?;
    reader.collect::<Result<_, _>>().map_err(|e| e.to_string())
}

fn line(fields: &str) -> Result<Vec<Row>, String> {
    read(&format!("{HEADER}\n{fields}\n"))
}

#[test]
fn a_file_is_read_field_by_field() {
    let text = format!(
        "# recorded by hand\r\n\n{HEADER},best_mode,note\r\n\
         10,9,8,7,6,5,4,3,2,1,0,shadow,nested,x\r\n# between\n 20 ,9,8,7,6,5,4,,,,,nested,,\n"
    );
    let rows = read(&text).unwrap();
    let first = Sample {
        time_ns: 10,
        duration_ns: 9,
        busy_ns: 8,
        instructions: 7,
        guest_cycles: 6,
        host_kernel_cycles: 5,
        host_user_cycles: 4,
        walk_cycles: Some(3),
        guest_page_faults: Some(2),
        tlb_misses: Some(1),
        vm_exits: Some(0),
        mode: Mode::Shadow,
    };
    assert_eq!(rows[0], Row { sample: first, best_mode: Some(Mode::Nested), line: 4 });
    assert_eq!(rows[1].sample.walk_cycles, None);
    assert_eq!((rows[1].sample.mode, rows[1].best_mode, rows[1].line), (Mode::Nested, None, 6));
}

#[test]
fn columns_may_stand_in_any_order() {
    let mut names: Vec<&str> = HEADER.split(',').collect();
    names.reverse();
    let text = format!("{}\nshadow,0,1,2,3,4,5,6,7,8,9,10\n", names.join(","));
    let sample = read(&text).unwrap()[0].sample;
    assert_eq!((sample.time_ns, sample.vm_exits), (10, Some(0)));
}

#[test]
fn errors_name_line_and_column() {
    let good = "1,9,8,7,6,5,4,3,2,1,0,shadow";
    let cases = [
        ("NaN,9,8,7,6,5,4,3,2,1,0,shadow", "line 2, column time_ns: `NaN` is not a number"),
        ("1,9,8,-7,6,5,4,3,2,1,0,shadow", "line 2, column instructions: `-7` is negative"),
        ("1,9,8,7,6.5,5,4,3,2,1,0,shadow", "line 2, column guest_cycles: `6.5` is not a whole"),
        ("1,9,8,7,6,inf,4,3,2,1,0,shadow", "column host_kernel_cycles: `inf` is not a whole"),
        ("1,9,8,7,6,5,4,1e3,2,1,0,shadow", "column walk_cycles: `1e3` is not a whole number"),
        ("1,9,8,7,6,5,4,3,2,?,0,shadow", "line 2, column tlb_misses: `?` is not a number"),
        ("1,9,,7,6,5,4,3,2,1,0,shadow", "line 2, column busy_ns: is empty"),
        ("1,9,8,7,6,5,4,3,2,1,0,", "line 2, column mode: is empty"),
        ("1,9,8,7,6,5,4,3,2,1,0,ept", "line 2, column mode: `ept` is no paging mode; shadow or"),
        ("1,9,8,7,6,5,4,3,2,1,shadow", "line 2: 11 fields, where the header has 12"),
        ("99999999999999999999,9,8,7,6,5,4,3,2,1,0,shadow", "is not a whole number below 2^64"),
    ];
    for (fields, expected) in cases {
        let error = line(fields).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let error = read(&format!("{HEADER}\n{good}\n\n{good}\n")).unwrap_err();
    assert_eq!(error, "line 4, column time_ns: 1 does not come after 1 of the line before");
    let without = HEADER.replace("walk_cycles,", "").replace("mode", "modus");
    let error = read(&format!("#\n{without}\n{good}\n")).unwrap_err();
    assert_eq!(error, "line 2: missing columns: walk_cycles, mode");
    let error = read(&format!("{HEADER},mode\n{good},shadow\n")).unwrap_err();
    assert_eq!(error, "line 1: two columns mode");
    assert!(read("").unwrap_err().contains("there is no header; it would be time_ns,"));
    assert!(read("\u{0}\u{1}").unwrap_err().contains("missing columns: time_ns"));
    assert!(read(&"x".repeat(100_000)).unwrap_err().contains("longer than 64 KiB"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        times in prop::collection::vec(1u64..1 << 40, 0..20),
        numbers in prop::array::uniform6(any::<u64>()),
        counters in prop::array::uniform4(prop::option::of(any::<u64>())),
        nested: bool,
    ) {
        let mut now = 0;
        let samples: Vec<Sample> = times.iter().map(|step| {
            now += step;
            Sample {
                time_ns: now,
                duration_ns: numbers[0],
                busy_ns: numbers[1],
                instructions: numbers[2],
                guest_cycles: numbers[3],
                host_kernel_cycles: numbers[4],
                host_user_cycles: numbers[5],
                walk_cycles: counters[0],
                guest_page_faults: counters[1],
                tlb_misses: counters[2],
                vm_exits: counters[3],
                mode: if nested { Mode::Nested } else { Mode::Shadow },
            }
        }).collect();
        let mut text = Vec::new();
        let comments = ["of a test\nin two lines".to_owned()];
        let mut writer = SampleWriter::new(&mut text, &comments).unwrap();
        for sample in &samples {
            writer.write(sample).unwrap();
        }
        let text = String::from_utf8(text).unwrap();
        prop_assert!(text.starts_with("# of a test\n# in two lines\ntime_ns,duration_ns,"));
        let read: Vec<Sample> = read(&text).unwrap().iter().map(|r| r.sample).collect();
        prop_assert_eq!(read, samples);
    }

    #[test]
    fn nothing_makes_the_reader_panic(text in "[0-9a-z,#\n\r.-]{0,300}") {
        let _ = read(&text);
        let _ = read(&format!("{HEADER}\n{text}"));
    }
}
