"""Several virtual hosts on one machine, with real KVM in them and links between them that are as bad as wanted.

From below: `image` builds and caches what a host boots, `host_spec` is one host as plain data and as QEMU's command
line, `host` starts, finds and ends it, `channel` runs commands in it without using the network under test.

    image = ensure_image("12", progress)                     # blocks: before the event loop, or in a thread
    spec = make_host_spec("host1", image, qemu=…, accel=…, memory=…)      # pure
    host = await Host.start(spec, lab_host_folders("host1"), network=argv, fds={64: 7}, deadline=20)
    await host.wait_ready(deadline=90)
    done = await host.run(["vmcoal", "doctor"], deadline=60)              # .code .stdout .stderr
    await host.close(); host = await Host.connect(folders, deadline=5)    # it runs on under its holder
    await host.kill()
"""
