"""All mutations, by folder of the product."""
from mutations import of_audio, of_core, of_data, of_files, of_library, of_programs, of_samplers, of_training, of_video

CASES = (
    *of_core.CORE, *of_core.LIKELIHOOD,
    *of_samplers.SAMPLERS, *of_samplers.GUIDANCE, *of_samplers.TASKS,
    *of_training.NETWORKS, *of_training.TRAIN, *of_training.DATA, *of_training.BUILD,
    *of_library.LIBRARY, *of_data.OWN_DATA, *of_audio.AUDIO, *of_video.VIDEO,
    *of_files.IO, *of_files.INTEROP, *of_files.METRICS, *of_files.PLANNING,
    *of_programs.PROGRAMS, *of_programs.EXPERIMENTS, *of_programs.LAUNCHERS,
)
