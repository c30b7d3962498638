use super::*;

fn package(name: &str, version: &str, architecture: &str) -> Package {
    let owned = str::to_owned;
    Package { name: owned(name), version: owned(version), architecture: owned(architecture) }
}

/// Lines that apt of Debian 12 printed.
#[test]
fn simulated_installations_are_read() {
    let parsed = |line| parse_simulated(line);
    let gmp = package("libgmp10", "2:6.2.1+dfsg1-1.1", "amd64");
    assert_eq!(
        parsed("Inst libgmp10 (2:6.2.1+dfsg1-1.1 Debian:12.15/oldstable [amd64])"),
        Some(gmp.clone())
    );
    assert_eq!(
        parsed("Inst libgcc-s1 (12.2.0-14+deb12u1 Debian:12.15/oldstable [amd64]) []"),
        Some(package("libgcc-s1", "12.2.0-14+deb12u1", "amd64"))
    );
    assert_eq!(
        parsed("Inst adduser (3.134 Debian:12.15/oldstable [all]) [perl:amd64 ]"),
        Some(package("adduser", "3.134", "all"))
    );
    assert_eq!(parsed("Conf adduser (3.134 Debian:12.15/oldstable [all])"), None);
    assert_eq!(parsed("The following NEW packages will be installed:"), None);
    assert_eq!(gmp.file_name(), "libgmp10_2%3a6.2.1+dfsg1-1.1_amd64.deb");
}

/// Lines as Ubuntu's lists of commands and Debian's lists of files have them.
#[test]
fn packages_are_found_by_their_programs() {
    let found = |is_commands, name, text: &str| {
        let mut of = Listed { name, is_commands, package: None };
        text.lines().flat_map(|line| of.packages(line)).collect::<Vec<_>>()
    };
    let text = "suite: noble\ncomponent: main\narch: amd64\n\nname: bsdextrautils\nversion: 2.38\n\
                commands: col,column,hd\n\nname: other\ncommands: column\n\nname: gcc\ncommands: gcc\n";
    assert_eq!(found(true, "hd", text), ["bsdextrautils"]);
    assert_eq!(found(true, "column", text), ["bsdextrautils", "other"]);
    assert_eq!(found(true, "colum", text), [""; 0]);
    let text = "usr/bin/hd                  utils/bsdextrautils\n\
                usr/bin/hd2\tutils/no\nusr/share/doc/hd utils/no\nhd utils/no\nusr/hd\n\
                sbin/fsck.x  admin/one,contrib/admin/two\nusr/bin/a b  x/spaced\n";
    assert_eq!(found(false, "hd", text), ["bsdextrautils"]);
    assert_eq!(found(false, "fsck.x", text), ["one", "two"]);
    assert_eq!(found(false, "a b", text), ["spaced"]);
}

#[test]
fn of_many_messages_the_errors_are_quoted() {
    let said = |text: &str| last_words(text.as_bytes());
    let text = "W: skipped\nE: Unable to locate package x\nE: Unable to locate package x\n";
    assert_eq!(said(text).as_deref(), Some("Unable to locate package x"));
    assert_eq!(said("reading\nW: no network\nW: old lists\n").as_deref(), Some("no network"));
    assert_eq!(said("tar: one\ntar: two\n\n").as_deref(), Some("tar: two"));
    assert_eq!(said(""), None);
}

#[test]
fn a_failed_command_is_quoted_without_its_options() {
    let mut command = Command::new("apt-get");
    command.args(["-o", "Dir::State=/x", "-q", "download"]).args((0..9).map(|n| n.to_string()));
    assert_eq!(in_short(&command), "apt-get -q download 0 1 2 3 4 …");
}

/// Lines that apt of Debian 12 and of Ubuntu 24.04 printed.
#[test]
fn sizes_of_downloads_are_read() {
    let line = "'http://deb.debian.org/debian/pool/main/j/jq/jq_1.6-2.1%2bdeb12u3_amd64.deb' \
                jq_1.6-2.1+deb12u3_amd64.deb 65192 SHA256:1e43";
    assert_eq!(parse_uri(line), Some(65192));
    assert_eq!(parse_uri("Reading package lists..."), None);
    assert_eq!(parse_uri(""), None);
}

#[test]
fn what_is_downloaded_is_counted_while_it_comes() {
    let place = std::env::temp_dir().join(format!("nestwalk-apt-{}", std::process::id()));
    fs::create_dir_all(&place).unwrap();
    let before = Downloaded::in_directory(&place);
    fs::write(place.join("gcc_4%3a12.2.0-3_amd64.deb"), [0; 10]).unwrap();
    let one = Downloaded::in_directory(&place);
    fs::remove_dir_all(&place).unwrap();
    assert_eq!((before.files, before.bytes), (0, 0));
    assert_eq!((one.files, one.bytes, one.newest.as_str()), (1, 10, "gcc"));
    let gone = Downloaded::in_directory(&place);
    assert_eq!((gone.files, gone.bytes), (0, 0));
}
