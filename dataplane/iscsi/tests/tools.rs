//! Initiators that others wrote, against volumes in memory over loopback: libiscsi's load generator and
//! inquiry, qemu-img. A tool that is not installed is told and skipped. libiscsi's conformance tool has a
//! file of its own, `conformance.rs`.

mod served;

use served::{BYTES, HOST, Kind, NAME, Served, run, text};
use std::io::Write as _;
use voute_iscsi::{Authentication, Chap, Credential};

#[test]
fn qemu_img_writes_an_image_and_finds_it_unchanged() {
    let served = Served::start(&Kind { thin: true, ..Kind::default() });
    let folder = std::env::temp_dir().join(format!("voute-iscsi-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
    let image = folder.join("image.raw");
    let mut bytes = vec![0u8; BYTES];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    // Half of it is not zero, in pieces.
    for piece in bytes.chunks_mut(200_000).step_by(2) {
        for byte in piece {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
    }
    std::fs::write(&image, bytes).expect("the image fits");
    let image = image.to_str().expect("the folder's name is text");
    let options = |digest: &str| {
        format!(
            "driver=iscsi,transport=tcp,portal={},target={NAME},lun=0,initiator-name={HOST},header-digest={digest}",
            served.addresses[0]
        )
    };
    for digest in ["none", "crc32c"] {
        let there = options(digest);
        let raw = format!("driver=raw,file.filename={image}");
        let convert = ["convert", "-n", "--image-opts", "--target-image-opts", &raw, &there];
        let Some(converted) = run("qemu-img", &convert) else { break };
        let said = text(&converted);
        if said.contains("Unknown driver 'iscsi'") || said.contains("Unknown protocol 'iscsi'") {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: qemu-img has no iSCSI driver, install qemu-block-extra"
            );
            break;
        }
        assert!(converted.status.success(), "{said}");
        let compared =
            run("qemu-img", &["compare", "--image-opts", &raw, &there]).expect("it just ran");
        assert!(compared.status.success(), "{}", text(&compared));
    }
    std::fs::remove_dir_all(&folder).expect("it was made above");
}

#[test]
fn the_load_generator_runs_without_an_error() {
    let served = Served::start(&Kind::default());
    for (depth, blocks) in [("1", "8"), ("32", "8"), ("8", "256")] {
        let arguments = ["-i", HOST, "-m", depth, "-b", blocks, "-r", "-t", "1", &served.url(0)];
        let Some(output) = run("iscsi-perf", &arguments) else { return };
        let said = text(&output);
        assert!(output.status.success() && said.contains("iops average"), "{said}");
    }
}

#[test]
fn libiscsi_logs_in_by_mutual_chap_with_digests_only_with_the_right_secrets() {
    let credential = |name: &str, secret: &str| Credential {
        name: name.into(),
        secret: secret.as_bytes().to_vec(),
    };
    let chap = Chap {
        host: credential("host", "secret of host"),
        target: Some(credential("target", "secret of target")),
    };
    let served =
        Served::start(&Kind { authentication: Authentication::Chap(chap), ..Kind::default() });
    let inquire = |host_secret: &str, target_secret: &str| {
        let url = format!(
            "iscsi://host%{host_secret}@{}/{NAME}/0?target_user=target&target_password={target_secret}\
             &header_digest=crc32c",
            served.addresses[0]
        );
        run("iscsi-inq", &["-i", HOST, &url]).map(|output| text(&output))
    };
    let Some(said) = inquire("secret of host", "secret of target") else { return };
    assert!(said.contains("Peripheral Qualifier:CONNECTED"), "{said}");
    for (host, target) in
        [("wrong secret 1", "secret of target"), ("secret of host", "wrong secret 1")]
    {
        let said = inquire(host, target).expect("it just ran");
        assert!(said.contains("Authentication fail"), "{said}");
    }
}
