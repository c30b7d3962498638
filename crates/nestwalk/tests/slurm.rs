//! `sweep --slurm` on a Slurm of one node, which runs as long as a test does: its daemons are those of
//! the distribution, and all that they write lies in the test's folder.

mod common;

use common::{Lab, Ran, parse, ran};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

/// 24 points of a moment each.
const POINTS: &str = "\
[compare]
source = 'gups'
accesses = '300k'
footprint = '4MiB'
machines = 'nested,shadow'
[axes]
profile.l2_tlb.entries = [768, 1536, 3072]
seed = { from = 1, to = 8 }
";

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Slurm's daemons. Dropping it ends them.
struct Cluster {
    lab: Lab,
    daemons: Vec<Child>,
}

/// A port that nobody has.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A program that may lie where only root looks.
fn program(name: &str) -> PathBuf {
    let folders = ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    let found = folders.into_iter().map(|folder| folder.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name}: the tests need it, and `scripts/check` installs it"))
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(20));
    }
}

impl Cluster {
    fn start() -> Self {
        let mut cluster = Self { lab: Lab::new(), daemons: Vec::new() };
        let lab = &cluster.lab;
        // munge wants that everybody can reach its socket and nobody its key.
        let mode = |name: &str, mode| {
            std::fs::set_permissions(lab.path(name), PermissionsExt::from_mode(mode)).unwrap();
        };
        for folder in ["secret", "state", "spool"] {
            std::fs::create_dir(lab.path(folder)).unwrap();
        }
        let mut key = [0; 128];
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut key).unwrap();
        lab.write("secret/key", key);
        mode("", 0o711);
        mode("secret", 0o700);
        mode("secret/key", 0o600);
        lab.write("slurm.conf", cluster.configuration());
        let at = |name: &str| lab.path(name).display().to_string();
        let of_munge = [
            format!("--key-file={}", at("secret/key")),
            format!("--socket={}", at("munge")),
            format!("--pid-file={}", at("secret/pid")),
            format!("--log-file={}", at("secret/log")),
            format!("--seed-file={}", at("secret/seed")),
            "--foreground".into(),
        ];
        cluster.daemon("munged", &of_munge.each_ref().map(String::as_str));
        until("munge's socket", || cluster.lab.path("munge").exists());
        cluster.daemon("slurmctld", &["-D"]);
        cluster.daemon("slurmd", &["-D"]);
        until("an idle node", || cluster.tool("sinfo", &["-h", "-o", "%T"]).out.trim() == "idle");
        cluster
    }

    fn configuration(&self) -> String {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let host = host.trim().split('.').next().unwrap();
        let user = self.lab.tool("id", &["-un"]);
        let user = String::from_utf8(user.stdout).unwrap();
        let (user, at) = (user.trim(), self.lab.path("").display().to_string());
        let at = at.trim_end_matches('/');
        let (controller, node) = (port(), port());
        format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser={user}\nSlurmdUser={user}\n\
             SlurmctldPort={controller}\nSlurmdPort={node}\n\
             AuthType=auth/munge\nAuthInfo=socket={at}/munge\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nSchedulerParameters=sched_interval=1\n\
             StateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool\n\
             SlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd.log\n\
             SlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/slurmd.pid\n\
             ReturnToService=2\nNodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN\n\
             PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
        )
    }

    fn daemon(&mut self, name: &str, args: &[&str]) {
        let mut command = Command::new(program(name));
        command.args(args).env("SLURM_CONF", self.lab.path("slurm.conf")).stdin(Stdio::null());
        let out = std::fs::File::create(self.lab.path(&format!("{name}.out"))).unwrap();
        command.stdout(out.try_clone().unwrap()).stderr(out);
        self.daemons.push(command.spawn().unwrap_or_else(|e| panic!("{name}: {e}")));
    }

    fn tool(&self, name: &str, args: &[&str]) -> Ran {
        let mut command = Command::new(program(name));
        command.args(args).env("SLURM_CONF", self.lab.path("slurm.conf"));
        ran(command.output().unwrap())
    }

    fn nestwalk(&self, line: &str) -> Ran {
        let mut command = self.lab.command();
        command.args(line.split_whitespace()).env("SLURM_CONF", self.lab.path("slurm.conf"));
        ran(command.output().unwrap())
    }

    /// Files of results, and when each was written.
    fn results(&self) -> BTreeMap<String, SystemTime> {
        let files = std::fs::read_dir(self.lab.path("d/points")).into_iter().flatten().flatten();
        let results = files.filter(|file| file.path().extension().is_some_and(|e| e == "json"));
        let written = |file: std::fs::DirEntry| {
            (file.file_name().into_string().unwrap(), file.metadata().unwrap().modified().unwrap())
        };
        results.map(written).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

#[test]
fn a_sweep_on_slurm_survives_a_kill_and_repeats_no_point() {
    let cluster = Cluster::start();
    let lab = &cluster.lab;
    lab.write("s.toml", POINTS);
    let submitted = cluster.nestwalk("sweep s.toml -o d --slurm --tasks 3 --format json --quiet");
    assert_eq!(submitted.code, 0, "{}", submitted.err);
    let submitted = parse(&submitted.out);
    assert_eq!((&submitted["tasks"], &submitted["missing"]), (&3.into(), &24.into()));
    assert_eq!(submitted["script"], lab.read("d/slurm/job.sh"));
    let job = submitted["job"].as_str().unwrap();
    until("a few points", || cluster.results().len() >= 4);
    // All tasks that run are killed, and those that wait do not begin.
    let killed = cluster.tool("scancel", &["--full", "--signal=KILL", "--state=RUNNING", job]);
    assert_eq!(killed.code, 0, "{}", killed.err);
    cluster.tool("scancel", &[job]);
    until("no job", || cluster.tool("squeue", &["-h"]).out.trim().is_empty());
    let before = cluster.results();
    assert!(before.len() < 24, "nothing was left to do");
    let collected = cluster.nestwalk("sweep s.toml -o d --collect --quiet");
    collected.assert_refused("--collect");
    assert!(collected.err.contains("are missing"), "{}", collected.err);
    // The rest, in other shares.
    let ran = cluster.nestwalk("sweep s.toml -o d --slurm --tasks 5 --wait --sbatch=--time=10");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("24 of 24 points"), "{}", ran.out);
    assert!(ran.err.contains("#SBATCH --time=10\n") && ran.err.contains("waiting"), "{}", ran.err);
    let after = cluster.results();
    assert_eq!(after.len(), 24);
    assert!(before.iter().all(|(name, written)| after[name] == *written), "run twice");
    let nothing = cluster.nestwalk("sweep s.toml -o d --slurm");
    assert!(nothing.code == 0 && nothing.out.contains("all points are done"), "{}", nothing.out);
    // Where they ran changes no byte.
    lab.ok("sweep s.toml -o here --quiet");
    assert_eq!(lab.read("d/results.csv"), lab.read("here/results.csv"));
    // A Slurm that refuses is quoted, and what there is stays.
    lab.write("s.toml", POINTS.replace("to = 8", "to = 9"));
    let refused = cluster.nestwalk("sweep s.toml -o d --slurm --sbatch=--partition=none");
    refused.assert_refused("--partition=none");
    for word in ["sbatch refused", "Invalid partition name", "24 of 27 points are done"] {
        assert!(refused.err.contains(word), "{word}: {}", refused.err);
    }
    assert_eq!(cluster.results(), after);
}
