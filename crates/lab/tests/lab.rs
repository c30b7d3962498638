//! The lab from outside: schemes that are added, files that are read back, messages that name fields.

use nestwalk_lab::scheme::Definition;
use nestwalk_lab::{Lab, PageTablesFile, Settings};
use nestwalk_sim::schemes::nested;

static MINE: Definition = Definition { name: "mine", ..nested::DEFINITION };

fn small(machines: &str) -> Settings {
    Settings {
        sources: vec!["uniform".into()],
        machines: machines.into(),
        footprint: Some(1 << 20),
        accesses: Some(2000),
        verify: true,
        ..Settings::default()
    }
}

fn message(lab: &Lab, settings: &Settings) -> String {
    format!("{:#}", lab.experiment(settings).unwrap_err())
}

#[test]
fn a_scheme_that_is_added_is_compared_with_the_others() {
    let lab = Lab::new().with_scheme(&MINE).unwrap();
    let session = lab.compare(&small("shadow,nested,mine/eptad=off:4k+2m,mine")).unwrap();
    let outcome = &session.outcome;
    let names: Vec<&str> = outcome.machines.iter().map(|m| m.name.as_str()).collect();
    let asked = ["shadow:4k+4k", "nested:4k+4k", "mine/eptad=off:4k+2m", "mine:4k+4k"];
    assert_eq!(names, [&["ideal:4k", "native:4k"], &asked[..]].concat());
    let [.., nested, _, mine] = outcome.machines.as_slice() else { panic!() };
    assert_eq!((mine.scheme.as_str(), mine.walks), ("mine", nested.walks));
    assert!(mine.referee.as_ref().unwrap().checked > 0);
    assert_eq!(outcome.counters.last().unwrap().walks, mine.walks);
    assert_eq!(lab.schemes().last().unwrap().name, "mine");
}

#[test]
fn messages_list_what_was_added_and_name_fields() {
    let mine = Lab::new().with_scheme(&MINE).unwrap();
    let said = message(&mine, &small("mien"));
    assert!(said.starts_with("machines: machine `mien`: no scheme") && said.ends_with(", mine"));
    assert!(message(&Lab::new(), &small("mine")).contains("no scheme `mine`"));
    assert!(mine.with_scheme(&MINE).unwrap_err().to_string().contains("take another name"));
    let wrong = Settings { vcpus: Some(0), ..small("nested") };
    assert!(message(&Lab::new(), &wrong).starts_with("vcpus 0: at least 1"));
    let typed = Lab::new().for_command_line(|_| ());
    assert!(message(&typed, &wrong).starts_with("--vcpus 0: at least 1"));
    let tables = PageTablesFile::File("dump".into());
    let said = message(&Lab::new(), &Settings { page_tables: tables, ..small("nested") });
    assert!(said.contains("is for a trace file"), "{said}");
}

#[test]
fn an_experiment_is_read_back_by_a_lab_that_has_its_schemes() {
    let lab = Lab::new().with_scheme(&MINE).unwrap();
    let experiment = lab.experiment(&small("mine")).unwrap();
    let file = std::env::temp_dir().join(format!("nestwalk-lab-{}.toml", std::process::id()));
    std::fs::write(&file, experiment.to_toml().unwrap()).unwrap();
    let (again, without) = (lab.read(&file), Lab::new().read(&file));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(again.unwrap(), experiment);
    assert!(format!("{:#}", without.unwrap_err()).contains("no scheme `mine`"));
}
