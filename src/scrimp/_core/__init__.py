"""What several packages need: the three contracts, and small tools, each in a file named for its job.

The contracts are ``IndexPlan`` (in ``index_plan``), ``StructureChange`` (in ``structure``) and ``TensorRole`` (in
``tensor_role``).
Nothing here imports anything of scrimp but ``scrimp.errors``.
"""
