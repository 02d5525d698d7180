"""Faults in clips: moving digits, their law, the kind video and its networks."""
from mutations.mutation import Mutation

VIDEO = (
    Mutation("digits-start-anew-in-each-split", "missing key fold", "diffusion/data/moving_digits.py",
             "key = np.array([self.seed, i], np.uint64)", "key = np.array([0, i], np.uint64)",
             ("tests/data/test_moving_digits.py",)),
    Mutation("digits-wrap-around-where-they-overlap", "lost clip", "diffusion/data/moving_digits.py",
             "np.minimum(video, 255).astype(np.uint8)", "video.astype(np.uint8)",
             ("tests/data/test_moving_digits.py",)),
    Mutation("digits-enter-the-wall", "off by one", "diffusion/data/moving_digits.py",
             "place[axis] = 0 if inward == 1 else room[axis] - 1", "place[axis] = 0 if inward == 1 else room[axis]",
             ("tests/data/test_moving_digits.py",)),
    Mutation("bounces-change-nothing", "lost term", "diffusion/metrics/moving_digits.py",
             "velocities = {tuple(-v if a == axis else v for a, v in enumerate(pair)) for pair in velocities}",
             "velocities = set(velocities)", ("tests/metrics/test_moving_digits.py",)),
    Mutation("later-frames-are-earlier-ones", "wrong sign", "diffusion/networks/video_unet.py",
             "half * (distance > 0)", "half * (distance < 0)", ("tests/networks/test_video.py",)),
    Mutation("frames-alone-see-the-others", "lost term", "diffusion/networks/video_unet.py",
             "return jnp.where(hidden, jnp.finfo(found.dtype).min, found)", "return found + 0 * hidden",
             ("tests/networks/test_video.py",)),
    Mutation("frames-mixed-up-in-the-channels", "swapped arguments", "diffusion/networks/unet_frames.py",
             "found.reshape(b, height, width, t, -1).transpose(0, 3, 1, 2, 4)",
             "found.reshape(b, height, width, -1, t).transpose(0, 4, 1, 2, 3)", ("tests/networks/test_video.py",)),
)
