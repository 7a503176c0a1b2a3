"""The programs that send mail, as they really call sendmail.

``test_replay`` starts sendmail as each of them does, from a table; ``test_real_*`` run the programs themselves, on a
``machine`` that a test makes of this one and that vanishes with it.
"""
