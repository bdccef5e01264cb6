//! A disk image with a file system, written by `qemu-img` over iSCSI while the owning site is killed,
//! and compared on each path; what qemu-io writes, reads and discards; qemu-img's bench. Told and skipped without qemu-img and its iSCSI driver, unless `CI` is
//! set.

use anyhow::{Context, ensure};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use voute::demo::cluster::READER_IQN;
use voute_tests::chance::Chance;
use voute_tests::cluster::{Log, TwoSites};

/// Big enough to be under way when the site is killed, at the rate below.
const IMAGE_BYTES: u64 = 96 << 20;
const RATE: &str = "12M";

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{program} cannot be run"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}{complained}");
    Ok(said)
}

/// Whether the tools are there; else says what is missing.
fn tools_are_there() -> bool {
    let formats = run("qemu-img", &["--help"]).unwrap_or_default();
    let module = Command::new("sh")
        .args(["-c", "ls /usr/lib/*/qemu/block-iscsi.so"])
        .output()
        .is_ok_and(|output| output.status.success());
    let has_iscsi = formats.split_whitespace().any(|word| word == "iscsi") && module;
    let has_ext4 = Command::new("mkfs.ext4").arg("-V").output().is_ok();
    if has_iscsi && has_ext4 {
        return true;
    }
    let why = "qemu-img with iSCSI (qemu-utils, qemu-block-extra) or mkfs.ext4 (e2fsprogs)";
    assert!(std::env::var_os("CI").is_none(), "missing: {why}");
    // Past the harness's capture.
    let _ = writeln!(std::io::stderr(), "SKIPPED: missing {why}");
    false
}

/// A raw image with an ext4 file system full of files that do not compress.
fn make_image(folder: &Path) -> anyhow::Result<PathBuf> {
    let (content, image) = (folder.join("content"), folder.join("image.raw"));
    std::fs::create_dir(&content)?;
    let mut chance = Chance::new(4);
    for number in 0..60 {
        let mut bytes = vec![0; (1 << 20) + number * 1_111];
        chance.fill(&mut bytes);
        std::fs::write(content.join(format!("file-{number}")), bytes)?;
    }
    std::fs::File::create(&image)?.set_len(IMAGE_BYTES)?;
    run("mkfs.ext4", &["-q", "-F", "-d", text(&content), text(&image)])?;
    Ok(image)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have names in UTF-8")
}

/// The volume as qemu-img names it.
fn volume_at(portal: SocketAddr, target: &str, lun: u16) -> String {
    format!(
        "driver=iscsi,transport=tcp,portal={portal},target={target},lun={lun},initiator-name={READER_IQN}"
    )
}

fn raw(image: &Path) -> String {
    format!("driver=raw,file.filename={}", text(image))
}

fn converting(image: &Path, volume: &str, options: &[&str]) -> anyhow::Result<Child> {
    Command::new("qemu-img")
        .args(["convert", "-n", "-p"])
        .args(options)
        .args(["--image-opts", "--target-image-opts", &raw(image), volume])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("qemu-img cannot be run")
}

/// How a copy that never began is told from one that broke off.
const NOTHING_WRITTEN: &str = "before it wrote anything";

/// Follows the progress that qemu-img prints until it passed a share of the whole, percent.
fn wait_progress(convert: &mut Child, percent: f64) -> anyhow::Result<()> {
    let mut said = String::new();
    let mut stdout = convert.stdout.take().context("its output is piped")?;
    let mut byte = [0];
    loop {
        if stdout.read(&mut byte)? == 0 {
            let mut complaint = String::new();
            convert
                .stderr
                .take()
                .context("its errors are piped")?
                .read_to_string(&mut complaint)?;
            let begun = said.split('(').skip(1).any(|share| !share.starts_with("0.00/"));
            let so_far = if begun { "in the middle" } else { NOTHING_WRITTEN };
            anyhow::bail!("qemu-img ended {so_far}: {said} {complaint}");
        }
        said.push(char::from(byte[0]));
        let shown = said
            .rsplit_once('(')
            .and_then(|(_, rest)| rest.split_once('/'))
            .and_then(|(share, _)| share.trim().parse::<f64>().ok());
        if shown.is_some_and(|shown| shown >= percent) {
            convert.stdout = Some(stdout);
            return Ok(());
        }
    }
}

/// Begins to copy. Seen once, on a busy machine: qemu-img gave up before it had written anything;
/// why is not known. Only that is tried anew, a few times and aloud; a copy that had begun must go on.
fn convert_a_quarter(image: &Path, volume: &str) -> anyhow::Result<Child> {
    let mut attempts = 0..5;
    loop {
        let mut convert = converting(image, volume, &["-r", RATE])?;
        match wait_progress(&mut convert, 25.0) {
            Ok(()) => return Ok(convert),
            Err(error) if !error.to_string().contains(NOTHING_WRITTEN) => return Err(error),
            Err(error) if attempts.next().is_none() => return Err(error),
            Err(error) => {
                writeln!(std::io::stderr(), "REPEATED: {error}")?;
                convert.wait()?;
            }
        }
    }
}

fn compare(image: &Path, volume: &str) -> anyhow::Result<()> {
    let said = run("qemu-img", &["compare", "--image-opts", &raw(image), volume])?;
    ensure!(said.contains("identical"), "{said}");
    Ok(())
}

#[test]
fn an_image_being_written_by_iscsi_survives_the_loss_of_the_owning_site() -> anyhow::Result<()> {
    if !tools_are_there() {
        return Ok(());
    }
    let sites = TwoSites::start_with_pools(Log::Embedded)?;
    let image = make_image(sites.stage.folder())?;
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001";
    let volume = sites.cluster.add_volume(&sites.stage, nqn)?;
    let lun = volume.mappings.iter().find(|mapping| mapping.host.name == "reader");
    let lun = lun.context("the volume is granted to the reader")?.lun;
    let target = sites.cluster.view()?.target_iqn;
    sites.wait_whole()?;
    let (owner, other) = (sites.owner()?, sites.other()?);
    let by_owner = volume_at(owner.portals.iscsi, &target, lun);
    let by_other = volume_at(other.portals.iscsi, &target, lun);

    let mut first = convert_a_quarter(&image, &by_owner)?;
    sites.kill(&owner.name())?;
    sites.wait_served_by(other.site)?;
    // It would try the dead portal for ever; whoever copies stops it and goes on by the other path.
    ensure!(first.try_wait()?.is_none_or(|status| !status.success()), "it was not interrupted");
    let _ = first.kill();
    first.wait()?;

    let second = converting(&image, &by_other, &[])?.wait_with_output()?;
    ensure!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    compare(&image, &by_other).context("on the surviving site")?;

    sites.start_again(&owner.name())?;
    sites.wait_whole()?;
    compare(&image, &by_other).context("after the resync")?;
    sites.move_to_other()?;
    compare(&image, &by_owner).context("on the returned site, after a planned move")?;
    check_file_system(&sites, &by_owner)?;
    sites.verify_log().map(|_| ())
}

/// A volume of 512-byte blocks for the reader; the site that owns it. QEMU 7.2's own initiator ends itself
/// by an assertion when it reads 32 KiB or more of a volume of larger blocks, before it asks us anything
/// (`iscsi_co_block_status` wants a range in whole blocks, and is asked for 2 GiB less 512 bytes).
fn add_disk(sites: &TwoSites) -> anyhow::Result<String> {
    let volume = sites.add_iscsi_volume("disk", 128 << 20, &[("machine", &[READER_IQN], false)])?;
    Ok(volume.owner_site.name)
}

/// What a virtual machine does to its disk, by the block layer that it uses: patterns across block and
/// transfer limits, parts of blocks, zeroes, discards, many at once.
#[test]
fn a_virtual_machine_s_block_layer_reads_what_it_wrote() -> anyhow::Result<()> {
    if !tools_are_there() {
        return Ok(());
    }
    let sites = TwoSites::start_with_pools(Log::Embedded)?;
    let owner_site = add_disk(&sites)?;
    let owner = sites.cluster.node_at(&owner_site)?;
    let other = sites.cluster.nodes.iter().find(|node| node.site != owner.site);
    let other = other.context("there are two sites")?;
    let (target, lun) = (sites.cluster.view()?.target_iqn, 0);
    let disk = volume_at(owner.portals.iscsi, &target, lun);
    sites.wait("the disk is offered", || {
        run("qemu-io", &["-c", "read 0 4k", "--image-opts", "-t", "none", &disk]).ok()
    })?;
    for digest in ["none", "crc32c"] {
        let disk = format!("{disk},header-digest={digest}");
        let steps = [
            "write -P 0xa6 0 1M",
            "write -P 0x5c 5M 9M",
            "read -P 0xa6 0 1M",
            "read -P 0x5c 5M 9M",
            // Parts of a block are read, changed and written by the block layer.
            "write -P 0x11 4000 200",
            "read -P 0xa6 3000 1000",
            "read -P 0x11 4000 200",
            "read -P 0xa6 4200 1000",
            "write -z 6M 1M",
            "write -z -u 8M 1M",
            "read -P 0x5c 5M 1M",
            "read -P 0 6M 1M",
            "read -P 0 8M 1M",
            "discard 10M 2M",
            "read -P 0 10M 2M",
            "aio_write -P 0x21 64M 4k",
            "aio_write -P 0x22 65M 1M",
            "aio_write -P 0x23 67M 128k",
            "aio_flush",
            "read -P 0x21 64M 4k",
            "read -P 0x22 65M 1M",
            "read -P 0x23 67M 128k",
            "flush",
        ];
        let commands = steps.iter().flat_map(|step| ["-c", step]);
        let arguments: Vec<&str> = commands.chain(["--image-opts", "-t", "none", &disk]).collect();
        let said = run("qemu-io", &arguments)?;
        ensure!(!said.contains("failed"), "{said}");
        let done = said.matches(" ops; ").count();
        let counted = steps.iter().filter(|step| !step.contains("flush")).count();
        ensure!(done == counted, "{done} of {counted} steps were done: {said}");
        // At the other site the volume is on standby: no data, and no answer taken for data.
        let standby = volume_at(other.portals.iscsi, &target, lun);
        let refused = run("qemu-io", &["-c", "read 0 4k", "--image-opts", "-t", "none", &standby]);
        ensure!(refused.is_err_and(|error| !error.to_string().contains("4 KiB, 1 ops")));
        for (way, size, depth) in [("-n", "4096", "32"), ("-w", "4096", "32"), ("-n", "1M", "4")] {
            let arguments =
                ["bench", "-c", "1000", "-d", depth, "-s", size, way, "-t", "none", "--image-opts"];
            let said = run("qemu-img", &[&arguments[..], &[&disk]].concat())?;
            ensure!(said.contains("Run completed"), "{said}");
        }
    }
    sites.verify_log().map(|_| ())
}

fn check_file_system(sites: &TwoSites, volume: &str) -> anyhow::Result<()> {
    let copy = sites.stage.folder().join("copy.raw");
    run("qemu-img", &["convert", "--image-opts", "-O", "raw", volume, text(&copy)])?;
    run("e2fsck", &["-f", "-n", text(&copy)]).map(|_| ())
}
