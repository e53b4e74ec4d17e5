//! Binds the system's libdpdk. What is missing is one line with the package's name.

use std::path::PathBuf;

/// What is linked. The drivers are no part of it: DPDK opens them from its own directory when it starts.
const LIBRARIES: &[&str] = &["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_eal"];

fn main() {
    println!("cargo:rerun-if-changed=src/wrapper.h");
    println!("cargo:rerun-if-changed=src/wrapper.c");
    let library = pkg_config::Config::new().atleast_version("22.11").cargo_metadata(false).probe("libdpdk");
    let library = library.unwrap_or_else(|e| {
        let why = if matches!(e, pkg_config::Error::Command { .. }) {
            "pkg-config does not run"
        } else {
            "there is no libdpdk of 22.11 or later"
        };
        stop(&format!("{why}: apt-get install libdpdk-dev pkg-config"))
    });
    if clang_sys::load().is_err() {
        stop("there is no libclang: apt-get install libclang1-14 clang-14");
    }
    // rte_config.h comes before everything else, and DPDK's inline functions want SSE 4.2 (pkg-config --cflags libdpdk).
    let flags = ["-include", "rte_config.h", "-march=corei7"];
    let includes = || library.include_paths.iter().map(|path| format!("-I{}", path.display()));

    let mut c = cc::Build::new();
    c.file("src/wrapper.c").includes(&library.include_paths).warnings(true);
    for flag in flags {
        c.flag(flag);
    }
    // DPDK's headers are full of what GCC 12 warns of.
    c.flag("-Wno-unused-parameter").flag("-Wno-deprecated-declarations");
    c.compile("zstack_dpdk_wrapper");

    let bindings = bindgen::Builder::default()
        .header("src/wrapper.h")
        .clang_args(flags)
        .clang_args(includes())
        .allowlist_function("z_.*|rte_eal_init|rte_eal_cleanup|rte_eal_alarm_set|rte_thread_(un)?register|rte_log_.*|rte_openlog_stream|rte_strerror")
        .allowlist_function("rte_eth_(dev|rx|tx|link|macaddr|promiscuous|stats|allmulticast).*|rte_eth_find_.*|rte_dev_(probe|remove|name)")
        .allowlist_function("rte_pktmbuf_(pool_create.*|pool_init|init)|rte_mbuf_best_mempool_ops|rte_mempool_(free|avail_count|populate.*|create_empty|obj_iter|set_ops_byname|calc_obj_size)|rte_mem_virt2iova|rte_extmem_.*|rte_lcore_.*|rte_socket_id")
        .allowlist_type("rte_mbuf|rte_pktmbuf_extmem|rte_pktmbuf_pool_private|rte_mempool|rte_eth_.*|rte_mbuf_ext_shared_info|rte_ether_addr")
        .allowlist_var("Z_.*|RTE_MEMPOOL_F_NO_IOVA_CONTIG|RTE_MAX_ETHPORTS|RTE_PKTMBUF_HEADROOM|RTE_ETH_LINK_.*|RTE_VERSION.*")
        .blocklist_type("_?IO_FILE|FILE|_IO_.*")
        .raw_line("use libc_file::FILE;\n/// What stdio calls a file.\npub mod libc_file {\n    /// stdio's own.\n    #[repr(C)]\n    pub struct FILE { _opaque: [u8; 0] }\n}")
        // Held by value nowhere, and they are packed and aligned at once, which Rust does not know.
        .opaque_type("rte_arp_ipv4|rte_arp_hdr|rte_l2tpv2_.*|rte_gtp_.*|rte_flow_.*")
        .derive_default(true)
        .layout_tests(true)
        .wrap_unsafe_ops(true)
        .rust_target(bindgen::RustTarget::stable(88, 0).expect("a version of Rust"))
        .rust_edition(bindgen::RustEdition::Edition2024)
        .generate()
        .unwrap_or_else(|e| stop(&format!("DPDK's headers cannot be read: {e}: apt-get install libdpdk-dev clang-14")));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    bindings.write_to_file(out.join("bindings.rs")).expect("a file in OUT_DIR");

    for path in &library.link_paths {
        println!("cargo:rustc-link-search=native={}", path.display());
    }
    for library in LIBRARIES {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
}

fn stop(line: &str) -> ! {
    eprintln!("zstack-dpdk-sys: {line}");
    std::process::exit(1)
}
